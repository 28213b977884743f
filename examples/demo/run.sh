#!/usr/bin/env bash
# The demo: verify the bundle that ships here and specialize it on text that every Python carries.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$root/.demo"
cd "$root/.demo"
rm -rf specialized .specialized.unfinished trusted
export PLANEARLY_HOME="$PWD/trusted" # the demo's key is trusted here, and nowhere else on this machine
ln -sfn ../examples examples

run() {
    echo "\$ $*"
    "$@" 2>&1
}

echo "\$ python examples/demo/write_topics.py private/"
python "$root/examples/demo/write_topics.py" private
run owner trust add examples/demo/provider.pub
run owner inspect examples/demo/pn16.st
run owner specialize --bundle examples/demo/pn16.st --data private/
echo "The specialized model and its report are in .demo/specialized/"
