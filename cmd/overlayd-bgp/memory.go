package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

const (
	// memoryName is the file in the state directory with what was announced last, for a start without etcd.
	memoryName = "bgp-routes.json"
	// remembered is for how long it counts: as long as leases of hosts that have gone, as a rule.
	remembered = 24 * time.Hour
)

func (c *config) memory() string { return filepath.Join(c.StateDir, memoryName) }

// recall reads what was announced last. It is nil if that is not known, or too long ago.
func (c *config) recall() (routes, error) {
	info, err := os.Stat(c.memory())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if time.Since(info.ModTime()) > remembered {
		return nil, nil
	}
	data, err := os.ReadFile(c.memory())
	if err != nil {
		return nil, err
	}
	var r routes
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", c.memory(), err)
	}
	return r, nil
}

func (c *config) remember(r routes) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return renameio.WriteFile(c.memory(), data, 0o600)
}
