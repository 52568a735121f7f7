#!/bin/sh
# Set up an environment of this folder, unless it is there and current: sh environment.sh .venv|.venv-peers|.venv-browser|.venv-linters
# Its stamp says where it was made. A copied or moved one holds the path of that place, and would run the library there.
set -e
cd "$(dirname "$0")/.."
root="$(pwd -P)"
venv="$1"
stamp="$venv/.stamp"
python="$venv/bin/python"
case "$venv" in
    .venv) sources="environment.yml lib/pyproject.toml" ;;
    .venv-peers) sources=".venv/.stamp tests/peers.txt" ;;
    .venv-browser) sources=".venv/.stamp tests/browser/requirements.txt" ;;
    .venv-linters) sources="tests/linters.txt" ;;
esac

# what is installed is compiled at the end, on all cores
pip() {
    "$python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"
}

old=no
for file in $sources; do
    [ "$stamp" -nt "$file" ] || old=yes
done

made="$(cat "$stamp" 2> /dev/null || echo "$root")"
if [ "$made" != "$root" ]; then
    if [ -e "$python" ]; then
        echo "$venv is that of ${made:-another folder}: it is made this folder's"
        [ -z "$made" ] || python3 workflow/moved.py "$made/$venv" "$root/$venv"
        pip --no-deps -e ./lib
    fi
    # one that another machine made, as a container finds it in a checkout, has no Python here
    [ -x "$python" ] || [ "$venv" = .venv-browser ] || old=yes
    echo "$root" > "$stamp"
fi
[ $old = yes ] || exit 0

echo "setting up $root/$venv (some minutes, once)"
python3 -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Python 3.11 or newer is needed, not " + sys.version)'
if [ "$venv" = .venv-browser ]; then
    # the browser's driver alone: it is put beside .venv, not into it
    python=.venv/bin/python
    pip --upgrade --target "$venv" -r tests/browser/requirements.txt
else
    [ -x "$python" ] || python3 -m venv --clear "$venv"
fi
if [ "$venv" = .venv-linters ]; then
    pip -r tests/linters.txt
elif [ "$venv" != .venv-browser ]; then
    # pip alone reads the one source of versions: the `pip:` list of environment.yml. Torch first and alone, so that whatever
    # depends on it takes that build.
    "$python" workflow/requirements.py environment.yml > "$venv/requirements.txt"
    pip $(grep '^torch==' "$venv/requirements.txt")
    if [ "$venv" = .venv ]; then
        pip -r "$venv/requirements.txt"
        "$python" -m pip check
    else
        # the same pins and, beside them, other trainers' libraries: what is measured there is what runs here
        pip -r "$venv/requirements.txt" -r tests/peers.txt
        pip --no-deps dictionary-learning==0.1.0 sae-bench==0.6.0
    fi
fi
# some packages hold files of other versions of Python
"$python" -m compileall -qq -j 0 "$venv" || true
echo "$root" > "$stamp"
