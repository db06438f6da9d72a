#!/bin/sh
# Before the files go. dpkg says "remove" or "upgrade", rpm how many versions will be left.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;; # an upgrade: it goes on running, and the new version's postinst starts it anew
esac
plugins=/usr/libexec/overlayd/cni
conflist=/etc/cni/net.d/10-overlay.conflist

# The kernel keeps what overlayd made, overlayd-tun.service goes on as long as it has a link, and containers go on talking
# until the next boot: "overlayd --cleanup" before this would have ended that, and given the lease back.
if [ -d /run/systemd/system ]; then
	systemctl --no-reload disable --now overlayd.service overlayd-docker.service overlayd-docker.socket overlayd-bgp.service overlayd-tun.socket
fi
for plugin in "$plugins"/*; do
	link=/opt/cni/bin/${plugin##*/}
	[ "$(readlink "$link")" != "$plugin" ] || rm "$link"
done
# dpkg leaves configuration behind. This one would make runtimes call a plugin that is gone.
if [ "$1" = remove ] && [ -e "$conflist" ]; then
	mv "$conflist" "$conflist.removed"
fi
