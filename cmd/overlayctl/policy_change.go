package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/overlayd/overlayd/policy/manifest"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

func (a *app) policyDeleteCommand() *cobra.Command {
	var m manifests
	cmd := &cobra.Command{
		Use:   "delete (NAME... | -f FILE)",
		Short: "Delete policies, by name or those of files",
		Long: `Delete policies, by name or those of files. If one of them is not there, none is deleted. Namespaces in files stay
described.`,
		Example: `  overlayctl policy delete -n dev deny-all-ingress
  overlayctl policy delete -f policies/`,
		ValidArgsFunction: a.completePolicy,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && len(m.files) == 0:
				return usageError{errors.New("missing argument: NAME or -f")}
			case len(args) > 0 && len(m.files) > 0:
				return usageError{fmt.Errorf("unexpected argument %q: the files say what is meant", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := a.deleted(m, args)
			if err != nil {
				return err
			}
			var all []done
			err = a.changePolicies(cmd.Context(), m.dryRun, func(held *etcdstore.Policies) (c etcdstore.PolicyChange, err error) {
				all = nil
				for _, key := range keys {
					if _, ok := held.Policies[key]; !ok && held.Unreadable[etcdstore.PolicyKey(key)] == nil {
						return c, noPolicy(held, key)
					}
					all = append(all, done{Kind: "NetworkPolicy", Name: key, Result: "deleted"})
				}
				c.Delete = keys
				return c, nil
			})
			if err != nil {
				return err
			}
			return a.printDone(all, m.dryRun)
		},
	}
	m.declare(cmd)
	cmd.Flags().BoolVar(&m.dryRun, "dry-run", false, "say what would be done, and do nothing")
	return cmd
}

// deleted are the policies that names or files mean, each once.
func (a *app) deleted(m manifests, args []string) (keys []string, err error) {
	seen := map[string]bool{}
	add := func(key string) {
		if !seen[key] {
			keys = append(keys, key)
		}
		seen[key] = true
	}
	for _, name := range args {
		key, err := a.key(name, m.namespace)
		if err != nil {
			return nil, err
		}
		add(key)
	}
	if len(args) > 0 {
		return keys, nil
	}
	s, err := a.read(m)
	for _, p := range s.Policies {
		add(p.Key())
	}
	return keys, err
}

func (a *app) policyDiffCommand() *cobra.Command {
	var m manifests
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what apply would change, and say by exit code 1 that it would",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.read(m)
			if err != nil {
				return err
			}
			held, err := a.policies(cmd.Context())
			if err != nil {
				return err
			}
			return a.diff(cmd.Context(), held, s)
		},
	}
	m.declare(cmd)
	return cmd
}

// diff has diff(1) compare the objects that would change, as kubectl does.
func (a *app) diff(ctx context.Context, held *etcdstore.Policies, s manifest.Set) error {
	change, _ := compare(held, s)
	if len(change.Put)+len(change.Namespaces) == 0 {
		return nil
	}
	dir, err := os.MkdirTemp("", "overlayctl-diff-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var errs []error
	write := func(side, name string, object map[string]any) {
		data, err := yaml.Marshal(object)
		errs = append(errs, err, os.WriteFile(filepath.Join(dir, side, name), data, 0o600))
	}
	errs = append(errs, os.Mkdir(filepath.Join(dir, "etcd"), 0o700), os.Mkdir(filepath.Join(dir, "files"), 0o700))
	for _, n := range change.Namespaces {
		if have, ok := held.Namespaces[n.Name]; ok {
			write("etcd", "namespace "+n.Name, manifest.NamespaceObject(have))
		}
		write("files", "namespace "+n.Name, manifest.NamespaceObject(n))
	}
	for _, p := range change.Put {
		name := "networkpolicy " + p.Namespace + " " + p.Name
		if have, ok := held.Policies[p.Key()]; ok {
			o, err := manifest.Object(have)
			errs = append(errs, err)
			write("etcd", name, o)
		}
		o, err := manifest.Object(p)
		errs = append(errs, err)
		write("files", name, o)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var out, complaint bytes.Buffer
	diff := exec.CommandContext(ctx, "diff", "-u", "-N", "-r", "etcd", "files")
	diff.Dir, diff.Stdout, diff.Stderr = dir, &out, &complaint
	exit := new(exec.ExitError)
	if err := diff.Run(); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		return fmt.Errorf("diff: %w %s", err, complaint.Bytes())
	}
	if _, err := a.stdout.Write(out.Bytes()); err != nil {
		return err
	}
	return errAttention
}
