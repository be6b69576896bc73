#!/usr/bin/env bash
# install.sh --ray VERSION --fabric VERSION [--python PROGRAM] [--venv FOLDER] [--index URL | --offline]
#
# Makes ~/.fabric-operator/venv, or points it at FOLDER. Where both pinned versions are there already it fetches nothing.
# Wheels in ~/.fabric-operator/wheels are preferred to the index; --offline uses nothing else.
set -euo pipefail
root=$HOME/.fabric-operator venv=$HOME/.fabric-operator/venv python=python3 ray= fabric= index=()
while [ $# -gt 0 ]; do
  case $1 in
  --ray) ray=$2; shift 2 ;;
  --fabric) fabric=$2; shift 2 ;;
  --python) python=$2; shift 2 ;;
  --venv) rm -rf "$root/venv.old"; [ -L "$venv" ] || [ ! -e "$venv" ] || mv "$venv" "$root/venv.old"; ln -sfn "$2" "$venv"; shift 2 ;;
  --index) index=(--index-url "$2"); shift 2 ;;
  --offline) index=(--no-index); shift ;;
  *) echo "install.sh: $1 is not an option; see the first lines of $0" >&2; exit 2 ;;
  esac
done
[ -n "$ray" ] && [ -n "$fabric" ] || { echo "install.sh: --ray and --fabric are needed" >&2; exit 2; }

line='[ -r ~/.fabric-operator/host/env.sh ] && . ~/.fabric-operator/host/env.sh'
touch ~/.bashrc
grep -qF '.fabric-operator/host/env.sh' ~/.bashrc || { printf '%s\n' "$line" | cat - ~/.bashrc >~/.bashrc.new; mv ~/.bashrc.new ~/.bashrc; }

check='import sys; from importlib.metadata import version
sys.exit(0 if [version("ray"), version("berkeley-compute")] == sys.argv[1:] else 1)'
installed() { "$venv/bin/python" -c "$check" "$ray" "$fabric" 2>/dev/null; }
if installed; then echo "ray $ray and berkeley-compute $fabric are there"; exit 0; fi
if [ -L "$venv" ]; then echo "install.sh: $(readlink "$venv") has not ray $ray and berkeley-compute $fabric" >&2; exit 1; fi

umask 077
exec 9>"$root/install.lock"; flock 9
installed && exit 0
"$python" -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${index[@]}" --find-links "$root/wheels" \
  "ray[default]==$ray" "berkeley-compute[operator]==$fabric"
installed || { echo "install.sh: the pinned versions are not usable after the installation" >&2; exit 1; }
