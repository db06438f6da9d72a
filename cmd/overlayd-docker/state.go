package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	"github.com/google/renameio/v2"

	"github.com/overlayd/overlayd/subnet"
)

// network is one of Docker's networks.
type network struct {
	Overlay  string `json:"overlay"`            // overlayd's network, "" the one without a name
	Internal bool   `json:"internal,omitempty"` // nothing but the overlay can be reached
}

// endpoint is one of Docker's endpoints: a container's place on a network, from before it joins till after it has left.
type endpoint struct {
	NetworkID string         `json:"networkID"`
	Overlay   string         `json:"overlay"`
	Pool      string         `json:"pool"`      // that its addresses are in
	Addresses []netip.Prefix `json:"addresses"` // IPv4 first
	MAC       string         `json:"mac"`
	Ports     []portMapping  `json:"ports,omitempty"` // of the host's that lead to it
}

// What the state directory has: a file for each.
const (
	networks  = "networks"
	endpoints = "endpoints"
)

// maxState is how large a file of it may be.
const maxState = 1 << 20

// state is what must be remembered for Docker, on disk alone.
type state struct{ dir string }

func newState(dir string) (state, error) {
	for _, kind := range []string{networks, endpoints} {
		if err := os.MkdirAll(filepath.Join(dir, kind), 0o700); err != nil {
			return state{}, err
		}
		// Of a driver that was killed while it wrote.
		left, err := filepath.Glob(filepath.Join(dir, kind, ".*"))
		for _, path := range left {
			err = cmp.Or(err, os.Remove(path))
		}
		if err != nil {
			return state{}, err
		}
	}
	return state{dir}, nil
}

// path is that of a file. The ids are Docker's; here they become a path.
func (s state) path(kind, id string) (string, error) {
	if id == "" || len(id) > 200 {
		return "", fmt.Errorf("%q is no id of one of Docker's %s", id[:min(len(id), 64)], kind)
	}
	if err := utils.ValidateContainerID(id); err != nil {
		return "", fmt.Errorf("%q is no id of one of Docker's %s", id, kind)
	}
	return filepath.Join(s.dir, kind, id+".json"), nil
}

// load reads a file; the error is [fs.ErrNotExist] if there is none.
func (s state) load(kind, id string, into any) error {
	path, err := s.path(kind, id)
	if err != nil {
		return err
	}
	f, err := subnet.OpenFile(path, maxState)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := json.NewDecoder(f).Decode(into); err != nil {
		return fmt.Errorf("%s: %w: remove it, and the container or network of Docker's", path, err)
	}
	return nil
}

// save writes a file, whole or not at all.
func (s state) save(kind, id string, what any) error {
	path, err := s.path(kind, id)
	if err != nil {
		return err
	}
	data, err := json.Marshal(what)
	if err != nil {
		return err
	}
	return renameio.WriteFile(path, data, 0o600, renameio.WithTempDir(filepath.Dir(path)))
}

// remove removes a file; it may be gone already.
func (s state) remove(kind, id string) error {
	path, err := s.path(kind, id)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ids lists what there is of a kind.
func (s state) ids(kind string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, kind))
	var all []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && !strings.HasPrefix(id, ".") {
			all = append(all, id)
		}
	}
	return all, err
}
