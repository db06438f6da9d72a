#!/usr/bin/env bash
# Unpacks podman 5 and netavark, which are Debian 13's, below a directory, with the libraries that they are linked with: they
# run on Debian 12, whose own podman knows no plugins of netavark's. Nothing is installed.
set -euo pipefail
mkdir -p "$1" && cd "$1"
[ -e done ] && exit 0
rm -rf apt root && mkdir -p apt/{lists/partial,cache/archives/partial,deb} root
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" >apt/sources.list
cat >apt/conf <<END
Dir::Etc::sourcelist "$PWD/apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$PWD/apt/lists";
Dir::Cache "$PWD/apt/cache";
END
(
	export APT_CONFIG=$PWD/apt/conf
	cd apt/deb
	apt-get update -qq
	apt-get download -qq podman netavark conmon libc6 libgcc-s1 libgpgme11t64 libseccomp2 libsqlite3-0 libsubid5 libassuan9 \
		libgpg-error0 libaudit1 libcap-ng0 libselinux1 libpcre2-8-0 libsystemd0 libacl1 libattr1 libbsd0 libmd0 libglib2.0-0t64 \
		libzstd1 zlib1g libcrypt1 libcap2 2>/dev/null
)
for package in apt/deb/*.deb; do dpkg -x "$package" root; done
(cd apt && apt-get update -qq && apt-get download -qq patchelf 2>/dev/null && dpkg -x patchelf_*.deb patchelf)
libraries=$(echo "$PWD"/root/usr/lib/*-linux-gnu*)
# The kernel starts each with its own loader and libraries, also where podman starts them.
for program in root/usr/bin/podman root/usr/bin/conmon root/usr/lib/podman/netavark; do
	apt/patchelf/usr/bin/patchelf --set-interpreter "$(echo "$libraries"/ld-linux-*)" --force-rpath --set-rpath "$libraries" "$program"
done
rm -rf apt
touch "done"
