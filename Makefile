# Everything that a person or CI does here. `make help` lists it.
SHELL      := /bin/bash -eu -o pipefail
PREFIX     ?= /usr
SYSCONFDIR ?= /etc
CNIBINDIR  ?= /opt/cni/bin
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
BIN        ?= bin
# Where the reference plugins go.
PLUGINDIR  ?= $(CNIBINDIR)

MODULE  := github.com/overlayd/overlayd
# The CNI plugin's: Nomad wants a semantic version, which a commit with no tag before it has not.
SEMVER  := $(if $(filter v%,$(VERSION)),$(VERSION),v0.0.0-g$(VERSION))
LDFLAGS := -s -w -X $(MODULE)/cmd/internal/version.number=$(VERSION) -X main.buildVersion=$(SEMVER)
BUILD   := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
TOOL    := go tool -modfile=tools.mod
# Go 1.27's encoding/json in Go 1.26: leases are read twice as fast. Later versions have no other.
export GOEXPERIMENT ?= jsonv2

# The reference plugins, at the version that tools.mod pins.
PLUGINS := $(addprefix github.com/containernetworking/plugins/plugins/, \
	main/bridge main/host-device main/ipvlan main/loopback main/macvlan main/ptp \
	ipam/dhcp ipam/host-local ipam/static \
	meta/bandwidth meta/firewall meta/portmap meta/sbr meta/tuning)
# Which they are to say when asked: Nomad checks no allocation where the bridge does not.
PLUGINS_VERSION := $(shell awk '$$1 == "github.com/containernetworking/plugins" {print $$2}' tools.mod)
PLUGINS_BUILD   := CGO_ENABLED=0 go build -modfile=tools.mod -trimpath -ldflags \
	'-s -w -X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=$(PLUGINS_VERSION)'

.DEFAULT_GOAL := help

.PHONY: build
build: ## build bin/overlayd, overlayctl, overlayd-docker, overlayd-tun and overlayd-bgp, bin/cni/overlay and the reference plugins beside it
	$(BUILD) -o $(BIN)/ ./cmd/overlayd ./cmd/overlayctl ./cmd/overlayd-docker ./cmd/overlayd-tun ./cmd/overlayd-bgp
	$(BUILD) -o $(BIN)/cni/overlay ./cniplugin
	$(PLUGINS_BUILD) -o $(BIN)/cni/ $(PLUGINS)
	CGO_ENABLED=0 go build -modfile=tools.mod -trimpath -o $(BIN)/ github.com/containernetworking/cni/cnitool

.PHONY: demo
demo: packages build ## two hosts on this machine: containers talk over vxlan, then over host-gw (root)
	integration/demo.sh

.PHONY: test
test: packages ## every test, with the race detector (root)
	integration/run-tests.sh

# The runtimes that no distribution has yet, each at the version that its own go.mod pins.
RUNTIMES := $(CURDIR)/bin/runtimes

.PHONY: test-runtimes
test-runtimes: packages bin/runtimes/flannel ## the runtimes' tests again, with containerd 2, nerdctl, podman, Docker and a real flanneld (root, minutes)
	CGO_ENABLED=0 go build -modfile=integration/runtimes/containerd.mod -trimpath -ldflags '-s -w' \
		-tags no_btrfs,no_devmapper,no_zfs,no_aufs -o $(RUNTIMES)/ tool
	CGO_ENABLED=0 go build -modfile=integration/runtimes/nerdctl.mod -trimpath -ldflags '-s -w' -o $(RUNTIMES)/ tool
	$(PLUGINS_BUILD) -o $(RUNTIMES)/ $(filter %/firewall %/tuning,$(PLUGINS))
	integration/runtimes/unpack.sh $(RUNTIMES)/debian
	integration/runtimes/unpack-podman5.sh $(RUNTIMES)/podman5
	integration/packages.sh docker-compose=docker-compose
	OVERLAYD_RUNTIMES_DIR=$(RUNTIMES) go test -race -v -run '^Test(Containerd|Nerdctl|Podman|Docker|Flanneld)' ./integration

# Its udp backend is in C.
bin/runtimes/flannel: integration/runtimes/flannel.mod
	CGO_ENABLED=1 go build -modfile=$< -trimpath -ldflags '-s -w' -o $(RUNTIMES)/ tool

.PHONY: test-policy
test-policy: packages ## all cases of network policies, cyclonus' 230 among them, with real packets (root, minutes)
	OVERLAYD_POLICY_ALL=1 go test -race -count=1 -v -timeout 30m $(if $(RUN),-run '$(RUN)') ./integration/policy

.PHONY: test-kernels
test-kernels: bin/runtimes/flannel ## ./backend/... and ./integration's main scenarios on Debian's 5.10, 6.1 and 6.12 in QEMU; KERNELS=6.1 chooses (root, hours without KVM)
	KERNELS='$(KERNELS)' PKGS='$(PKGS)' RUN='$(RUN)' SKIP='$(SKIP)' integration/kernels/test.sh

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, and govulncheck where its database can be reached
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt -w these files:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	$(TOOL) staticcheck ./...
	@if timeout 10 curl -fsS -o /dev/null https://vuln.go.dev/index/db.json 2>/dev/null; \
	then $(TOOL) govulncheck ./...; else echo "govulncheck: its database cannot be reached from here, not run"; fi

.PHONY: bench
bench: packages ## measure, as ratios in one run (root)
	go test -run '^$$' -bench . -benchtime 1x -timeout 60m ./subnet ./subnet/leasecache ./subnet/etcdstore ./backend/enforce ./backend/firewall ./backend/kernel ./backend/userspace ./policy/compile ./cmd/internal/enforcer ./integration ./integration/policy

.PHONY: chaos
chaos: ## two minutes of everything going wrong between 30 hosts and etcd; CHAOS=10m and SEED=n change that
	OVERLAYD_CHAOS=$(or $(CHAOS),2m) OVERLAYD_CHAOS_SEED=$(SEED) go test -race -count=1 -v -timeout 2h -run '^TestChaos$$' ./subnet/etcdstore

.PHONY: packages
packages: # the Debian packages that the demo and the tests run
	integration/packages.sh

include packaging/install.mk

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
