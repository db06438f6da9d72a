package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/overlayd/overlayd/subnet"
)

// View is the network as a host last saw it: enough to come up with while etcd is away.
type View struct {
	Config []byte         // as the operator wrote it; nil: none
	Own    *subnet.Record // nil: none
	Peers  []subnet.Record
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

// SaveView writes the cache.
func (s *State) SaveView(v View) error {
	file := cacheFile{Config: v.Config}
	if v.Own != nil {
		own, err := cached(*v.Own)
		if err != nil {
			return err
		}
		file.Own = &own
	}
	for _, peer := range v.Peers {
		c, err := cached(peer)
		if err != nil {
			return err
		}
		file.Peers = append(file.Peers, c)
	}
	raw, err := json.Marshal(file)
	if err != nil {
		return fmt.Errorf("lease cache: %w", err)
	}
	return s.write(cacheName, raw)
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
		v.Own = &own
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

func cached(r subnet.Record) (cacheLease, error) {
	value, err := r.Value()
	if err != nil {
		return cacheLease{}, fmt.Errorf("lease cache: %s: %w", r.Key(), err)
	}
	return cacheLease{Key: r.Key(), Value: value, LeaseID: r.LeaseID}, nil
}

func (c cacheLease) record() (subnet.Record, error) {
	lease, err := subnet.ParseLease(c.Key, c.Value)
	if err != nil {
		return subnet.Record{}, fmt.Errorf("lease cache: %s: %w", c.Key, err)
	}
	return subnet.Record{Lease: lease, LeaseID: c.LeaseID}, nil
}
