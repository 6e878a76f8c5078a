#!/bin/sh
# Compiles the story model and lets it tell a story on every machine there is; needs shrinkc on PATH.
#   examples/demo.sh [OUTPUT [PROMPT [TOKENS]]]
set -eu
here=$(dirname "$0")
out=${1:-out/stories}
prompt=${2:-Once upon a time}
tokens=${3:-200}

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
    shrinkc run "$out" --on $machine --prompt "$prompt" --tokens "$tokens"
done
