package enforcer

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"runtime/debug"
	"time"

	"github.com/google/renameio/v2"

	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/policy/compile"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

const (
	// MemoryName is the file in the state directory that has what is remembered.
	MemoryName = "policy.json"
	// mostMemory bounds the file: 300,000 endpoints with 200 bytes of labels each.
	mostMemory = 128 << 20
	// restMemory is between two writes, and a second more for each thousand endpoints.
	restMemory = 2 * time.Second
	// restPolicies is the same if policies changed, which is seldom: who is started without etcd must not open what was closed.
	restPolicies = time.Second
	// peersAtOnce are asked of the loop for the file, for 50 µs.
	peersAtOnce = 200
	// muchGarbage is how large a file is, in bytes, after whose writing memory is given back.
	muchGarbage = 1 << 20
)

// errEnded says that the file was not written because all is written at the end.
var errEnded = errors.New("the daemon ends")

// memory is what the host remembers of what is in force, for a start without etcd. There is none without policies.
type memory struct {
	path    string
	network string
	dirty   bool
	writing bool      // aside
	due     time.Time // when it may be written
	written time.Time // when it was
	there   bool      // the file is, or may be
	err     error
	peers   json.RawMessage // as read at the start
}

// remembered is the file.
type remembered struct {
	Version   int               `json:"version"`
	Network   string            `json:"network"`
	Values    map[string][]byte `json:"values"`              // of policies and namespaces, by key
	Endpoints json.RawMessage   `json:"endpoints,omitempty"` // other hosts': rememberedPeer, of which there are many
}

type rememberedPeer struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	Lease int64  `json:"lease"`
}

// recall takes in what is remembered: etcd is measured by it. It is in force if etcd does not answer.
func (e *Enforcer) recall() {
	m := &e.memory
	data, err := readMemory(m.path)
	m.there = !errors.Is(err, fs.ErrNotExist)
	var r remembered
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil || r.Version != 1:
		e.cfg.Log.Warn("what is remembered of policies cannot be read", "file", m.path, "err", err)
		return
	case r.Network != m.network:
		return
	}
	for key, value := range r.Values {
		e.believed.set(key, value)
	}
	m.peers = r.Endpoints
}

func readMemory(path string) ([]byte, error) {
	f, err := subnet.OpenFile(path, mostMemory)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, mostMemory)) // it may have grown since
}

// remember has what is in force written, if that has changed, now and then, aside; at the end, at once.
func (e *Enforcer) remember(now time.Time, end bool) {
	m := &e.memory
	if !m.dirty || !e.complete || (m.writing || now.Before(m.due)) && !end {
		return
	}
	m.dirty = false
	if !e.believed.enforces() {
		if m.there {
			m.err = os.Remove(m.path)
			m.there = m.err != nil && !errors.Is(m.err, fs.ErrNotExist)
		}
		return
	}
	m.written, m.due = now, now.Add(restMemory+time.Duration(e.peers.all)*time.Millisecond)
	m.there = true
	values := maps.Clone(e.believed.values)
	if end {
		_, err := e.write(values, func(f func()) bool { f(); return true })
		e.wrote(err)
		return
	}
	m.writing = true
	e.aside.Go(func() {
		size, err := e.write(values, e.in)
		if size > muchGarbage {
			debug.FreeOSMemory() // of what was made to be written, and at the start to be read
		}
		e.in(func() { e.wrote(err) })
	})
}

// write writes the file, and says how long it is. For other hosts' endpoints, which may be many, it asks the loop, by in, again and
// again for some: those that come or go meanwhile are right the next time.
func (e *Enforcer) write(values map[string][]byte, in func(func()) bool) (size int, err error) {
	f, err := renameio.NewPendingFile(e.memory.path, renameio.WithPermissions(0o600))
	if err != nil {
		return 0, err
	}
	defer f.Cleanup() //nolint:errcheck // there is nothing to clean up if it is replaced
	w := bufio.NewWriterSize(f, 64<<10)
	put := func(before string, v any, less int) {
		data, _ := json.Marshal(v) // cannot fail: strings only
		_, _ = w.WriteString(before)
		n, _ := w.Write(data[:len(data)-less]) // what fails, Flush tells
		size += len(before) + n
	}
	put("", remembered{Version: 1, Network: e.memory.network, Values: values}, len("}"))
	next, stop := iter.Pull2(e.compiler.Sourced())
	defer stop()
	before := `,"endpoints":[`
	for more := true; more; {
		var some []rememberedPeer
		if !in(func() {
			for i := 0; i < peersAtOnce && more; i++ {
				var key string
				var from compile.Source
				if key, from, more = next(); more {
					_, value, _ := e.compiler.Endpoint(key).Publish("")
					some = append(some, rememberedPeer{key, string(value), from.Lease})
				}
			}
		}) {
			return size, errEnded
		}
		for _, p := range some {
			put(before, p, 0)
			before = ","
		}
	}
	_, _ = w.WriteString(map[bool]string{true: "]}", false: "}"}[before == ","])
	if size > mostMemory {
		return size, fmt.Errorf("policies and endpoints take more than %d MiB", mostMemory>>20)
	}
	if err := w.Flush(); err != nil {
		return size, err
	}
	return size, f.CloseAtomicallyReplace()
}

// wrote takes in how that went.
func (e *Enforcer) wrote(err error) {
	m := &e.memory
	m.writing = false
	if err != nil {
		err = fmt.Errorf("policies cannot be remembered for the next start: %w", err)
		if m.err == nil {
			e.cfg.Log.Warn("policies are not remembered", "err", err)
		}
		m.dirty = true // again when it is due
	}
	m.err = err
	task.Signal(e.wake)
}

// rely has the remembered endpoints count: etcd does not say which there are.
func (e *Enforcer) rely() {
	var all []rememberedPeer
	if err := json.Unmarshal(e.memory.peers, &all); err != nil && e.memory.peers != nil {
		e.cfg.Log.Warn("what is remembered of other hosts' endpoints cannot be read", "file", e.memory.path, "err", err)
	}
	e.memory.peers = nil
	var n etcdstore.News
	for _, p := range all {
		kv := etcdstore.KeyValue{Key: etcdstore.EndpointDir + p.Key, Value: []byte(p.Value), LeaseID: p.Lease}
		if covers(e.following.ranges, []string{kv.Key}) {
			n.Put = append(n.Put, kv)
		}
	}
	e.peers.hear(n, e.hostID())
	e.track(e.compiler.Flush()) // nothing is in the kernel yet: it gets all there is
}
