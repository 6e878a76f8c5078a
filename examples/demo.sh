#!/bin/sh
# Compiles the story model and lets it tell a story on every machine there is; needs shrinkc on PATH.
#   examples/demo.sh [OUTPUT [PROMPT [TOKENS [SIMULATED]]]]
# SIMULATED: new tokens on GVSoC, which takes seconds for each of them.
set -eu
here=$(dirname "$0")
out=${1:-out/stories}
prompt=${2:-Once upon a time}
tokens=${3:-200}
simulated=${4:-20}

shrinkc compile "$here/stories" --target siracusa -o "$out" --force
machines=$(shrinkc doctor)
for machine in host qemu gvsoc; do
    if [ $machine = gvsoc ] && ! echo "$machines" | grep -q '^gvsoc .* ok '; then
        echo
        echo "$machines" | grep '^to fix gvsoc'
        continue
    fi
    echo
    echo "---- $machine ----"
    new=$tokens
    if [ $machine = gvsoc ]; then
        new=$simulated
        echo "$new tokens on a simulated Siracusa: this takes about $((10 + 4 * new)) seconds"
    fi
    shrinkc run "$out" --on $machine --prompt "$prompt" --tokens "$new"
done
