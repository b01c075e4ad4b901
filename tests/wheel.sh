#!/usr/bin/env bash
# sdist -> wheel -> a clean environment outside the checkout, where gptask must work without its tree.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$checkout/.venv/bin/python" -m build --outdir "$work/dist" "$checkout"
python=$("$checkout/.venv/bin/python" -c 'import sys; print(sys._base_executable)')
"$python" -m venv "$work/clean"
"$work/clean/bin/python" -m pip --quiet --disable-pip-version-check install -c "$checkout/constraints.txt" "$work"/dist/*.whl
cd "$work"
export GPTASK_CACHE="$work/cache"
clean/bin/gptask tasks
clean/bin/gptask train --cfg job > job.yaml
grep -q '^task:' job.yaml
clean/bin/gptask train backbone=nano trainer.max_steps=2
test -s outputs/sentiment/*/metrics.json
test -s clean/lib/python3*/site-packages/gptask/serving/http/static/index.html
clean/bin/gptask serve check=true 2> refusal.txt || grep -q "pip install 'gptask\[serve\]'" refusal.txt   # no extra here
echo "wheel: fine"
