# Installation and packages: one list for both. Part of the Makefile.

.PHONY: install
install: build ## install below DESTDIR: binaries, CNI plugins, unit and configuration
	$(MAKE) --no-print-directory stage

# What install installs and package packs, from what is built in BIN. HOSTBIN is BIN for the machine that builds.
HOSTBIN ?= $(BIN)
SHARE   := $(DESTDIR)$(PREFIX)/share
LIB     := $(DESTDIR)$(PREFIX)/lib

.PHONY: stage
stage:
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/sbin $(BIN)/overlayd{,-docker,-tun,-bgp}
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin $(BIN)/overlayctl
	install -D -m 0755 -t $(DESTDIR)$(CNIBINDIR) $(BIN)/cni/overlay
	@# A reference plugin that is there stays, unless it is ours of before they knew their version.
	for plugin in $$(find $(BIN)/cni -type f ! -name overlay); do \
		to=$(DESTDIR)$(PLUGINDIR)/$${plugin##*/}; \
		if [ ! -e $$to ] || env -i timeout 3 $$to 2>&1 | grep -q 'version unknown$$'; then install -D -m 0755 $$plugin $$to; fi; \
	done
	@# netavark, podman's, looks for its plugins there; its own is the same program.
	install -d $(DESTDIR)$(PREFIX)/libexec/netavark
	ln -sfn $(CNIBINDIR)/overlay $(DESTDIR)$(PREFIX)/libexec/netavark/overlay
	install -D -m 0644 -t $(LIB)/systemd/system systemd/overlayd{,-docker,-tun,-bgp}.service systemd/overlayd-{docker,tun}.socket
	sed -i 's|^\(ExecStart[^/]*\)/usr/\(s*bin/overlay\)|\1$(PREFIX)/\2|' $(LIB)/systemd/system/overlayd{,-docker,-tun,-bgp}.service
	install -D -m 0644 -t $(LIB)/sysusers.d etc/sysusers.d/overlayd.conf
	install -D -m 0644 -t $(LIB)/tmpfiles.d etc/tmpfiles.d/overlayd.conf
	install -D -m 0644 -t $(LIB)/sysctl.d etc/sysctl.d/50-overlayd.conf
	install -D -m 0644 -t $(LIB)/modules-load.d etc/modules-load.d/overlayd.conf
	install -D -m 0644 -t $(LIB)/NetworkManager/conf.d etc/NetworkManager/conf.d/50-overlayd.conf
	install -D -m 0644 -t $(LIB)/systemd/network etc/systemd/network/10-overlayd.network
	install -D -m 0644 -t $(LIB)/firewalld/services etc/firewalld/services/overlayd.xml
	install -d $(SHARE)/{man/man8,bash-completion/completions,fish/vendor_completions.d,zsh/site-functions}
	$(HOSTBIN)/overlayd --man >$(SHARE)/man/man8/overlayd.8
	$(HOSTBIN)/overlayd-docker --man >$(SHARE)/man/man8/overlayd-docker.8
	$(HOSTBIN)/overlayd-bgp --man >$(SHARE)/man/man8/overlayd-bgp.8
	$(HOSTBIN)/overlayctl man >$(SHARE)/man/man8/overlayctl.8
	$(HOSTBIN)/overlayctl completion bash >$(SHARE)/bash-completion/completions/overlayctl
	$(HOSTBIN)/overlayctl completion fish >$(SHARE)/fish/vendor_completions.d/overlayctl.fish
	$(HOSTBIN)/overlayctl completion zsh >$(SHARE)/zsh/site-functions/_overlayctl
	install -D -m 0644 -t $(DESTDIR)$(SYSCONFDIR)/iproute2/rt_protos.d etc/iproute2/rt_protos.d/overlayd.conf
	[ -e $(DESTDIR)$(SYSCONFDIR)/overlayd/overlayd.yaml ] || \
		install -D -m 0644 -t $(DESTDIR)$(SYSCONFDIR)/overlayd etc/overlayd.yaml
	[ -e $(DESTDIR)$(SYSCONFDIR)/cni/net.d/10-overlay.conflist ] || \
		install -D -m 0644 -t $(DESTDIR)$(SYSCONFDIR)/cni/net.d etc/10-overlay.conflist
	install -D -m 0644 -t $(SHARE)/overlayd/nomad etc/nomad/10-overlay.conflist
	install -D -m 0755 -t $(SHARE)/overlayd/examples examples/aws-routes examples/gce-routes
	install -D -m 0644 -t $(SHARE)/overlayd/examples etc/bgp.yaml

.PHONY: uninstall
uninstall: ## remove what install put there, except configuration and the reference plugins
	rm -f $(DESTDIR)$(PREFIX)/sbin/overlayd{,-docker,-tun,-bgp} $(DESTDIR)$(PREFIX)/bin/overlayctl $(DESTDIR)$(CNIBINDIR)/overlay
	rm -f $(DESTDIR)$(PREFIX)/libexec/netavark/overlay
	rm -f $(LIB)/systemd/system/overlayd{,-docker,-tun,-bgp}.service $(LIB)/systemd/system/overlayd-{docker,tun}.socket $(LIB)/{sysusers,tmpfiles,modules-load}.d/overlayd.conf
	rm -f $(LIB)/NetworkManager/conf.d/50-overlayd.conf $(LIB)/systemd/network/10-overlayd.network
	rm -f $(LIB)/firewalld/services/overlayd.xml
	rm -f $(LIB)/sysctl.d/50-overlayd.conf $(SHARE)/man/man8/{overlayd,overlayd-docker,overlayd-bgp,overlayctl}.8
	rm -f $(SHARE)/bash-completion/completions/overlayctl $(SHARE)/fish/vendor_completions.d/overlayctl.fish
	rm -f $(SHARE)/zsh/site-functions/_overlayctl $(SHARE)/overlayd/nomad/10-overlay.conflist
	rm -f $(SHARE)/overlayd/examples/{aws-routes,gce-routes,bgp.yaml}
	rm -f $(DESTDIR)$(SYSCONFDIR)/iproute2/rt_protos.d/overlayd.conf

ARCHES  ?= amd64 arm64
FORMATS ?= deb rpm
# A version as dpkg and rpm sort it: v1.2-3-gabc comes after 1.2, v1.2-rc1 before it, a bare commit before everything.
PACKAGE_VERSION ?= $(shell sed -E 's/-([0-9]+)-g/+\1.g/; s/-dirty$$/.dirty/; s/-/~/g; s/^v//; /^[0-9]+[.]/!s/^/0~/' <<<'$(VERSION)')

.PHONY: package
package: build ## build bin/packages/*.deb, *.rpm and SHA256SUMS, for amd64 and arm64; SIGN_KEY=… signs with that key of gpg's
	for arch in $(ARCHES); do \
		GOARCH=$$arch $(MAKE) --no-print-directory build BIN=bin/$$arch; \
		$(MAKE) --no-print-directory pack ARCH=$$arch BIN=bin/$$arch HOSTBIN=$(BIN); \
	done
	$(MAKE) --no-print-directory sums

# The sums of all packages there are, and with SIGN_KEY a signature of them.
.PHONY: sums
sums:
	cd $(PACKAGES) && rm -f SHA256SUMS.asc && sha256sum $(addprefix *.,$(FORMATS)) >SHA256SUMS
	[ -z '$(SIGN_KEY)' ] || gpg --quiet --local-user '$(SIGN_KEY)' --armor --detach-sign $(PACKAGES)/SHA256SUMS

# The packages for one architecture, from what is built in BIN.
PACKAGES ?= bin/packages

.PHONY: pack
pack: export ARCH := $(ARCH)
pack: export PACKAGE_VERSION := $(PACKAGE_VERSION)
pack: export STAGE := $(BIN)/stage
pack: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
pack:
	rm -rf $(STAGE)
	$(MAKE) --no-print-directory stage DESTDIR=$(STAGE) PREFIX=/usr SYSCONFDIR=/etc PLUGINDIR=/usr/libexec/overlayd/cni
	mkdir -p $(PACKAGES)
	for format in $(FORMATS); do $(TOOL) nfpm package -f packaging/nfpm.yaml -p $$format -t $(PACKAGES)/; done
