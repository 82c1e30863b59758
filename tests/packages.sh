# Packages that tests need beyond those of the system. Sourced by tests/run and tests/clients/run, in the root directory.

venv=target/venv
node=target/node
debian=target/debian

python_packages() {
  local lists=(tests/requirements.txt clients/python/tests/requirements.txt) wanted
  wanted=$(cat "${lists[@]}")
  if [ "$wanted" != "$(cat $venv/installed 2>/dev/null)" ]; then
    python3 -m venv $venv &&
      $venv/bin/pip install --quiet --disable-pip-version-check "${lists[@]/#/--requirement=}" --editable clients/python || return 1
    printf '%s' "$wanted" >$venv/installed
  fi
}

node_packages() {
  if ! cmp -s clients/node/tests/package.json $node/installed; then
    mkdir -p $node &&
      cp clients/node/tests/package.json $node/package.json &&
      npm install --silent --no-audit --no-fund --prefix $node &&
      cp $node/package.json $node/installed
  fi
}

# Sites that are only unpacked: installed, they would bring a web server, and have their data where others have it.
debian_packages() {
  command -v apt-get >/dev/null || return 0
  local package missing=()
  mkdir -p $debian
  for package in "$@"; do
    compgen -G "$debian/${package}_*.deb" >/dev/null || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return 0
  # Lists that are missing or old name no file that can be downloaded.
  [ "$(id -u)" != 0 ] || apt-get update -qq || return 1
  for package in "${missing[@]}"; do
    if apt-cache show "$package" >/dev/null 2>&1; then
      (cd $debian && apt-get download -qq -o APT::Sandbox::User=root "$package") || return 1
    else
      echo "this Debian has no $package"
    fi
  done
}
