package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet"
)

// maxFile is how large a file of an endpoint may be: all that an identity may hold fits in.
const maxFile = 256 << 10

// file is an endpoint as somebody says who runs containers without CNI: <run-dir>/endpoints/<id>.json.
type file struct {
	IPs      []netip.Addr    `json:"ips"`
	Identity policy.Identity `json:"identity"`
}

// Dir is where the files are.
func Dir(runDir string) string { return filepath.Join(runDir, "endpoints") }

// WriteFile writes the file of an endpoint, whole or not at all. One that says the same stays as it is.
func WriteFile(dir, id string, e policy.Endpoint) error {
	if err := e.Validate(); err != nil {
		return fmt.Errorf("endpoint %s: %w", id, err)
	}
	data, err := json.Marshal(file{e.IPs, e.Identity})
	if err != nil {
		return err
	}
	name := filepath.Join(dir, id+".json")
	if old, err := readBytes(name); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return renameio.WriteFile(name, data, 0o644, renameio.WithStaticPermissions(0o644))
}

// RemoveFile removes it; it may be gone already.
func RemoveFile(dir, id string) error {
	if err := os.Remove(filepath.Join(dir, id+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ReadFile reads the file of one endpoint: no link, no FIFO, nothing large, and nothing that it should not hold.
func ReadFile(name string) (policy.Endpoint, error) {
	data, err := readBytes(name)
	if err != nil {
		return policy.Endpoint{}, err
	}
	var f file
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return policy.Endpoint{}, fmt.Errorf("%s: %w", name, err)
	}
	e := policy.Endpoint{Identity: f.Identity, IPs: f.IPs}
	if err := e.Validate(); err != nil {
		return policy.Endpoint{}, fmt.Errorf("%s: %w", name, err)
	}
	return e, nil
}

func readBytes(name string) ([]byte, error) {
	f, err := subnet.OpenFile(name, maxFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// ReadDir reads all endpoints in dir, by their ids, and says what is wrong with those that cannot be read. Where there is no
// such directory there are none.
func ReadDir(dir string) (all map[string]policy.Endpoint, unread map[string]error, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	all, unread = map[string]policy.Endpoint{}, map[string]error{}
	for _, entry := range entries {
		id, isJSON := strings.CutSuffix(entry.Name(), ".json")
		if !isJSON || strings.HasPrefix(id, ".") {
			continue
		}
		e, err := ReadFile(filepath.Join(dir, entry.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed since
		case err != nil:
			unread[id] = err
		default:
			all[id] = e
		}
	}
	return all, unread, err
}
