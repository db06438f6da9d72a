#!/bin/sh
# After the files are in place: at an installation, an upgrade, and when one of the two failed halfway.
set -e
plugins=/usr/libexec/overlayd/cni
conflist=/etc/cni/net.d/10-overlay.conflist

systemd-sysusers overlayd.conf
systemd-tmpfiles --create overlayd.conf || true # what it cannot make now, it makes at the next boot

# The reference plugins are linked, and only where there is none: /opt/cni/bin is where people unpack their own.
for plugin in "$plugins"/*; do
	link=/opt/cni/bin/${plugin##*/}
	[ -e "$link" ] || ln -sfn "$plugin" "$link"
done

# Set aside when the package was removed.
if [ -e "$conflist.removed" ] && [ ! -e "$conflist" ]; then
	mv "$conflist.removed" "$conflist"
fi

# It is not started at a first installation: until somebody has said where etcd is, it could only wait there, and
# container runtimes would wait for it at the next boot. One that runs is started anew; packets flow meanwhile.
# Nobody waits for that: without etcd it may take as long as etcd does. overlayd-tun.service is not: the links that it
# serves would go with it. doctor says where it is of another version.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl --no-block try-restart overlayd.service overlayd-docker.service overlayd-bgp.service
fi
