#!/usr/bin/env bash
# Makes R with limma, edgeR and statmod available: already there, through apt where permitted, or one line saying how.
# Exit status 0 when R is ready, 3 when it is not and cannot be installed from here.
set -u
wanted='for (p in c("limma", "edgeR", "statmod")) library(p, character.only = TRUE)'
packages=(r-base-core r-base-dev r-bioc-limma r-bioc-edger r-cran-statmod libtirpc-dev)

ready() { command -v Rscript >/dev/null && Rscript -e "$wanted" >/dev/null 2>&1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo "$@"
  else return 1; fi
}

ready && exit 0
if command -v apt-get >/dev/null && as_root true; then
  echo "installing R, limma, edgeR and statmod through apt (once)"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  { as_root apt-get update && as_root apt-get install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1 || tail -n 5 "$log"
  rm -f "$log"
fi
ready && exit 0
echo "R with limma, edgeR and statmod is not installed: tests marked 'r' are skipped. On Debian or Ubuntu: apt-get install ${packages[*]}"
exit 3
