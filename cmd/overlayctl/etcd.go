package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"
)

func (a *app) etcdCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "etcd",
		Short: "Back etcd up, and bring it back",
	}, a.etcdSnapshotCommand(), a.etcdRestoreCommand())
}

func (a *app) etcdSnapshotCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "snapshot FILE",
		Short: "Write all that etcd holds to a new file",
		Long: `Write all that etcd holds to a new file, with a checksum. It needs root on a host that runs etcd for the network. Who has
the file knows what etcd knows: tokens' hashes, and no key.`,
		Args: arguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			n, err := c.Snapshot(cmd.Context(), f)
			if err != nil {
				err = a.named(err)
			}
			if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
				return errors.Join(err, os.Remove(args[0]))
			}
			_, err = fmt.Fprintf(a.stdout, "wrote %s, %d bytes\n", args[0], n)
			return err
		},
	}
}

func (a *app) etcdRestoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Make etcd's data from a snapshot, on a host whose overlayd does not run",
		Long: `Make etcd's data from a snapshot, on a host whose overlayd does not run and that has no such data: move
/var/lib/overlayd/etcd away before. It is etcd's only member then. Hosts that find it where their etcd was keep their subnets.`,
		Args: arguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			program, err := daemonProgram()
			if err != nil {
				return err
			}
			restore := exec.CommandContext(cmd.Context(), program, "--config", cmd.Flag("config").Value.String(), "--restore-etcd", args[0])
			restore.Stdout, restore.Stderr = a.stdout, a.stderr
			if err := restore.Run(); err != nil {
				return fmt.Errorf("%s --restore-etcd: %w", program, err)
			}
			return nil
		},
	}
}
