package attachment

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// All is what the store remembers.
type All struct {
	Usable   []Attachment
	Empty    []Key // of files in which a power loss has left nothing
	Unusable []Key // of others that cannot be understood
}

// Have says whether one of them is the interface of the container.
func (a All) Have(containerID, ifName string) bool {
	is := func(k Key) bool { return k.ContainerID == containerID && k.IfName == ifName }
	return slices.ContainsFunc(a.Unusable, is) || slices.ContainsFunc(a.Usable, func(x Attachment) bool { return is(x.Key()) })
}

// All reads the attachments of networks.
func (s *Store) All(networks ...string) (all All, err error) {
	for _, network := range networks {
		keys, err := s.List(network)
		if err != nil {
			return All{}, err
		}
		for _, k := range keys {
			a, err := s.Load(k)
			switch {
			case errors.Is(err, fs.ErrNotExist): // removed since
			case errors.Is(err, errEmpty):
				all.Empty = append(all.Empty, k)
			case err != nil:
				all.Unusable = append(all.Unusable, k)
			default:
				all.Usable = append(all.Usable, a)
			}
		}
	}
	return all, nil
}

// Read reads the attachments of a network without the lock: it keeps nobody waiting. Where there is no such directory nothing
// is remembered.
func Read(dir, network string) (all All, err error) {
	err = look(dir, func(s *Store) (err error) {
		all, err = s.All(network)
		return err
	})
	return all, err
}

// look calls f with the store in dir, unlocked and to be read only; not if there is no such directory.
func look(dir string, f func(*Store) error) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("dataDir: %w", err)
	}
	defer root.Close()
	return f(&Store{dir: dir, root: root})
}

// Freed is something that was freed because its container is gone.
type Freed struct {
	Network     string `json:"network"` // or the pool of a reservation without an attachment
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	Address     string `json:"address,omitempty"` // of such a reservation
	Reason      string `json:"reason"`
}

// FreedReport is what was freed last because an ADD had no address left.
type FreedReport struct {
	At    time.Time `json:"at"`
	Freed []Freed   `json:"freed"`
}

// freedName has no place among the networks, which are directories.
const freedName = "freed.json"

// SaveFreed saves the report in place of the one before.
func (s *Store) SaveFreed(r FreedReport) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.replace(freedName, data)
}

// LastFreed returns the last report of the store in dir; it is empty if there is none.
func LastFreed(dir string) (r FreedReport, err error) {
	err = look(dir, func(s *Store) error {
		data, err := s.read(freedName)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		return err
	})
	return r, err
}
