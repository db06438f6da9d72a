package main

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// stranded is a container of a subnet that this host has no more: other hosts send its packets elsewhere.
type stranded struct {
	ContainerID string            `json:"containerID"`
	IfName      string            `json:"ifName"`
	Subnets     []string          `json:"subnets"` // those that it has an address of and the host has not
	Labels      map[string]string `json:"labels,omitempty"`
}

// String is what a person needs to find the container.
func (s stranded) String() string {
	return containerLine(s.ContainerID, s.IfName, "an address of "+strings.Join(s.Subnets, ", "), s.Labels)
}

// containerLine says which container must be restarted, and for what.
func containerLine(id, ifName, why string, labels map[string]string) string {
	text := "container " + id + ", " + ifName + ", has " + why
	for _, label := range slices.Sorted(maps.Keys(labels)) {
		text += ", " + label + "=" + labels[label]
	}
	return text + ": restart it"
}

// localStatus is what the daemon says of itself and what it cannot see: the containers' network namespaces.
type localStatus struct {
	api.Status
	Oversized []oversized `json:"oversized"` // null: not root, or no network
	Stranded  []stranded  `json:"stranded"`  // null: not root, or no lease

	// Unguarded are the containers that an older plugin has attached, whose guard the daemon does not hold.
	Unguarded int `json:"unguarded"`

	// Unpoliced are the containers that were attached, before there were policies, by what no policy holds for.
	Unpoliced int `json:"unpoliced"`

	// Freed is what the plugin has freed of dead containers, the last time that it had no address left; null: nothing.
	Freed *attachment.FreedReport `json:"freed"`
}

// lastFreed is the latest of what the networks' plugins have freed.
func lastFreed(ctx context.Context, dirs *cniDirs) (*attachment.FreedReport, error) {
	networks, err := dirs.everyNetwork(ctx)
	if err != nil {
		return nil, notRoot(err)
	}
	var last attachment.FreedReport
	for _, n := range networks {
		r, err := attachment.LastFreed(n.dataDir)
		if err != nil {
			return nil, notRoot(err)
		}
		if r.At.After(last.At) {
			last = r
		}
	}
	if last.At.IsZero() {
		return nil, nil
	}
	return &last, nil
}

// findStranded lists the containers that run with addresses of former leases.
func findStranded(living []attachment.Attachment, s api.Status) []stranded {
	own := map[netip.Prefix]bool{}
	for _, text := range s.Subnets {
		if p, err := netip.ParsePrefix(text); err == nil {
			own[p.Masked()] = true
		}
	}
	if living == nil || len(own) == 0 {
		return nil
	}
	found := []stranded{}
	for _, x := range living {
		if former := formerSubnets(x, own); len(former) > 0 {
			found = append(found, stranded{x.ContainerID, x.IfName, former, x.Labels})
		}
	}
	return found
}

// countUnguarded counts the containers that may send what they like, and could not if they were attached now.
func countUnguarded(living []attachment.Attachment, s api.Status) (n int) {
	for _, x := range living {
		if x.HostIfIndex > 0 && x.Guard == "" && slices.Contains(s.Guard.Parts, "containers") {
			n++
		}
	}
	return n
}

// countUnpoliced counts the containers that have a way round policies, and would not if they were attached now.
func countUnpoliced(living []attachment.Attachment, s api.Status) (n int) {
	for _, x := range living {
		if x.Unseen() != "" && s.Policy.Enforcing {
			n++
		}
	}
	return n
}

// living are the attachments to the daemon's networks whose containers run; nil: it is not root who asks.
func (a *app) living(ctx context.Context, dirs *cniDirs) ([]attachment.Attachment, error) {
	if os.Geteuid() != 0 { // who may read of containers may not look for their namespaces
		return nil, nil
	}
	networks, err := dirs.everyNetwork(ctx)
	if err != nil {
		return nil, err
	}
	found := []attachment.Attachment{}
	for _, n := range networks {
		docker := n.list.Name == attachment.DockerNetwork
		if n.subnetFile != a.subnetFile() && !docker {
			continue // another daemon's
		}
		all, err := n.attachments()
		if err != nil {
			return nil, err
		}
		for _, x := range all.Usable {
			ours := !docker || filepath.Join(a.settings.RunDir, x.Labels[attachment.NetworkLabel], "subnet.env") == a.subnetFile()
			if ours && x.NetnsIsThere() {
				found = append(found, x)
			}
		}
	}
	return found, nil
}

func formerSubnets(a attachment.Attachment, own map[netip.Prefix]bool) []string {
	var former []string
	for _, p := range a.Subnets {
		if !own[p.Masked()] {
			former = append(former, p.Masked().String())
		}
	}
	return former
}

// notRoot forgives that somebody else may not read the plugin's files: the rest of the status is for everybody.
func notRoot(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}
