"""Storage formats of matrices, and how many bytes a matrix takes in each.

A format is one file here and its C twin ``runtime_c/include/sc_dot_w<bits>.h``; FORMATS is the list.
"""

from shrinkc.storage.blocks import StoredRows as StoredRows
from shrinkc.storage.blocks import pack_blocks as pack_blocks
from shrinkc.storage.format import WORD as WORD
from shrinkc.storage.format import StorageFormat as StorageFormat
from shrinkc.storage.formats import FORMATS as FORMATS
from shrinkc.storage.formats import WIDEST as WIDEST
from shrinkc.storage.formats import WIDTHS as WIDTHS
from shrinkc.storage.formats import format_of as format_of
from shrinkc.storage.kv_cache import KV_BITS as KV_BITS
from shrinkc.storage.matrix import ADAPTER_BITS as ADAPTER_BITS
from shrinkc.storage.matrix import ALIGN as ALIGN
from shrinkc.storage.matrix import BLOCKS as BLOCKS
from shrinkc.storage.matrix import MatrixShape as MatrixShape
from shrinkc.storage.matrix import Store as Store
from shrinkc.storage.matrix import stored_group as stored_group
from shrinkc.storage.offsets import ZERO_BITS as ZERO_BITS
from shrinkc.storage.offsets import ZERO_MAX as ZERO_MAX
from shrinkc.storage.offsets import ZERO_MIN as ZERO_MIN
from shrinkc.storage.offsets import Offsets as Offsets
