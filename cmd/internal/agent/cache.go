package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/overlayd/overlayd/subnet"
)

// View is the network as a host last saw it: enough to come up with while etcd is away.
type View struct {
	Config []byte         // as the operator wrote it; nil: none
	Own    *subnet.Record // nil: none
	Peers  []*subnet.Record
}

const cacheName = "leases.json"

// cacheFile is the file leases.json: everything in the form that it has in etcd.
type cacheFile struct {
	Config json.RawMessage `json:"config"`
	Own    *cacheLease     `json:"own"`
	Peers  []cacheLease    `json:"peers"`
}

type cacheLease struct {
	Key     string          `json:"key"`
	Value   json.RawMessage `json:"value"`
	LeaseID int64           `json:"leaseID"`
}

// SaveView writes the cache, whole or not at all.
func (s *State) SaveView(v View) error {
	f, err := renameio.NewPendingFile(filepath.Join(s.dir, cacheName), renameio.WithPermissions(0o600))
	if err != nil {
		return fmt.Errorf("lease cache: %w", err)
	}
	defer f.Cleanup()
	w := bufio.NewWriter(f)
	if err := v.write(w); err != nil {
		return fmt.Errorf("lease cache: %w", err)
	}
	if err := errors.Join(w.Flush(), f.CloseAtomicallyReplace()); err != nil {
		return fmt.Errorf("lease cache: %w", err)
	}
	return nil
}

// write writes a cacheFile lease by lease: that of a large network takes more memory than all the rest.
func (v View) write(w *bufio.Writer) error {
	config, err := json.Marshal(json.RawMessage(v.Config))
	if err != nil {
		return err
	}
	own := []byte("null")
	if v.Own != nil {
		if own, err = cached(v.Own); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, `{"config":%s,"own":%s,"peers":[`, config, own)
	for i, peer := range v.Peers {
		lease, err := cached(peer)
		if err != nil {
			return err
		}
		if i > 0 {
			w.WriteByte(',')
		}
		w.WriteByte('\n')
		w.Write(lease)
	}
	_, err = w.WriteString("]}\n") // tells of all errors before
	return err
}

// LoadView reads the cache; the zero View if there is none. A damaged one is an error, and can be done without.
func (s *State) LoadView() (View, error) {
	raw, err := os.ReadFile(filepath.Join(s.dir, cacheName))
	if errors.Is(err, fs.ErrNotExist) {
		return View{}, nil
	}
	if err != nil {
		return View{}, fmt.Errorf("lease cache: %w", err)
	}
	var file cacheFile
	if err := json.Unmarshal(raw, &file); err != nil {
		return View{}, fmt.Errorf("lease cache: %w", err)
	}
	v := View{Config: file.Config}
	if file.Own != nil {
		own, err := file.Own.record()
		if err != nil {
			return View{}, err
		}
		v.Own = own
	}
	for _, c := range file.Peers {
		peer, err := c.record()
		if err != nil {
			return View{}, err
		}
		v.Peers = append(v.Peers, peer)
	}
	return v, nil
}

// cached is a lease as a cacheLease.
func cached(r *subnet.Record) ([]byte, error) {
	value, err := r.Value()
	if err != nil {
		return nil, err
	}
	return json.Marshal(cacheLease{Key: r.Key(), Value: value, LeaseID: r.LeaseID})
}

func (c cacheLease) record() (*subnet.Record, error) {
	lease, err := subnet.ParseLease(c.Key, c.Value)
	if err != nil {
		return nil, fmt.Errorf("lease cache: %s: %w", c.Key, err)
	}
	return &subnet.Record{Lease: lease, LeaseID: c.LeaseID}, nil
}
