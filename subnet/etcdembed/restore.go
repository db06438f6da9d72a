package etcdembed

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// ErrData says that there are data already, which nothing may replace.
var ErrData = errors.New("there is an etcd's data already")

// Restore makes the data of a member alone from a snapshot, which is a cluster of its own: hosts see by its id that it is not
// the one of before, and read all of it anew. It fails with ErrData, and changes nothing, where there are data.
func Restore(cfg Config, from io.Reader) (err error) {
	data := filepath.Join(cfg.Dir, "data")
	defer func() {
		if err != nil {
			err = fmt.Errorf("restore etcd's data in %s: %w", data, err)
		}
	}()
	if _, err := os.Lstat(data); err == nil {
		return ErrData
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	work, err := os.MkdirTemp(cfg.Dir, "restore-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	file := filepath.Join(work, "snapshot")
	if err := copyTo(file, from); err != nil {
		return err
	}
	peers := []string{peerURL}
	if cfg.Peers != "" {
		if peers, err = cfg.PeerURLs(); err != nil {
			return err
		}
	}
	name := serverName(cfg)
	if err := restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: name, OutputDataDir: filepath.Join(work, "data"), PeerURLs: peers,
		InitialCluster: cluster(name, peers), InitialClusterToken: token(),
	}); err != nil {
		return err
	}
	return os.Rename(filepath.Join(work, "data"), data)
}

// restore returns as an error what etcd panics of.
func restore(cfg snapshot.RestoreConfig) (err error) {
	defer syscall.Umask(syscall.Umask(0o077))
	defer func() {
		if why := recover(); why != nil {
			err = fmt.Errorf("%v", why)
		}
	}()
	return snapshot.NewV3(zap.NewNop()).Restore(cfg)
}

func copyTo(path string, from io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}
