"""Fields of the tables, and numbers of an enum, that a model's code does not read."""

from __future__ import annotations

from shrinkc.codegen.fields import with_read_fields

HEADER = """typedef struct {
    uint16_t k, groups, words; /* inputs */
    uint8_t drop;              /* grouped: right shift,
                                * in two lines */
    uint8_t level;
    const struct sc_matrix *adapter; /* or NULL */
} sc_matrix;
typedef struct {
    int unread;
} another;
enum level { A_FIRST = 0, A_SECOND = 1, A_THIRD = 2 };
enum format {
    F_ONE = 1, /* one */
    F_TWO = 2, /* two */
    F_FOUR = 4 /* four */
};
enum { COUNTED, UNCOUNTED };
"""
TABLE = """#define IN {.k = 96, .groups = 1, .words = 72}
const sc_matrix m = {.in = IN, .drop = (1 + 2), .level = A_FIRST, .adapter = 0};
"""
CODE = "int f(const sc_matrix *m) { return m->in.k + m->words + (m)->level + A_SECOND + F_ONE + COUNTED; }\n"


def test_fields_without_a_reader() -> None:
    out = with_read_fields({"h.h": HEADER, "model.c": TABLE, "a.c": CODE}, [])
    struct, rest = out["h.h"].split("} sc_matrix;\n")
    assert struct == "typedef struct {\n    uint16_t k, words; /* inputs */\n    uint8_t level;\n"
    assert "int unread;" in rest and "enum { COUNTED, UNCOUNTED };" in rest
    assert "enum level { A_FIRST = 0, A_SECOND = 1 };" in rest
    assert "enum format {\n    F_ONE = 1 /* one */\n};" in rest
    assert out["model.c"] == (
        "#define IN {.k = 96, .words = 72}\nconst sc_matrix m = {.in = IN, .level = A_FIRST};\n"
    )
    assert out["a.c"] == CODE


def test_other_sources_read_too() -> None:
    out = with_read_fields({"h.h": HEADER, "model.c": TABLE}, [CODE, "int g = m.drop + F_TWO;\n"])
    assert "uint8_t drop;" in out["h.h"] and ".drop = (1 + 2)" in out["model.c"]
    assert "F_ONE = 1, /* one */\n    F_TWO = 2 /* two */\n" in out["h.h"]
