#!/bin/sh
# After the files are gone. State and configuration go when dpkg is told to purge, and never else; rpm has no such
# thing. The user stays: what is left of its files elsewhere must not become another one's.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "$1" = purge ]; then
	rm -rf /var/lib/overlayd /var/lib/overlayd-docker /etc/overlayd /run/overlayd
	rm -rf /var/lib/cni/overlay /var/lib/cni/networks/overlay /var/lib/cni/networks/overlayd-*
	rm -f /etc/cni/net.d/10-overlay.conflist.removed
fi
