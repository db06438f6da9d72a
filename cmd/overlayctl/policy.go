package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/manifest"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// policyTries is how often a change is tried while others change policies too.
const policyTries = 10

func (a *app) policyCommand() *cobra.Command {
	denials := a.policyDenialsCommand()
	ofUnnamed(denials)
	return group(&cobra.Command{
		Use:   "policy",
		Short: "Say what containers may reach, and be reached by: NetworkPolicies as Kubernetes has them",
	}, a.policyApplyCommand(), a.policyGetCommand(), a.policyListCommand(), a.policyDeleteCommand(), a.policyDiffCommand(),
		a.policyExplainCommand(), a.policyDefaultCommand(), a.policyConfirmCommand(), denials)
}

// manifests are how files of policies are named on a command line.
type manifests struct {
	files     []string
	namespace string
	dryRun    bool
}

func (m *manifests) declare(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&m.files, "filename", "f", nil,
		"`file` with policies, YAML or JSON, or a directory of such; - is the standard input. It can be given several times")
	declareNamespace(cmd, &m.namespace, "`namespace` of what says none (default: default); what says another is refused")
}

func declareNamespace(cmd *cobra.Command, namespace *string, usage string) {
	cmd.Flags().StringVarP(namespace, "namespace", "n", "", usage)
}

// read reads all files before anything is done with one: nothing is half applied for a mistake in the last.
func (a *app) read(m manifests) (s manifest.Set, err error) {
	if len(m.files) == 0 {
		return s, usageError{errors.New("name the files: -f")}
	}
	if m.namespace != "" {
		if err := policy.ValidateNamespace(m.namespace); err != nil {
			return s, usageError{err}
		}
	}
	var files []string
	for _, f := range m.files {
		more, err := manifestFiles(f)
		if err != nil {
			return s, err
		}
		files = append(files, more...)
	}
	var errs []error
	for _, f := range files {
		name, data := f, []byte(nil)
		if f == "-" {
			name = "standard input"
			data, err = io.ReadAll(a.stdin)
		} else {
			data, err = os.ReadFile(f)
		}
		if err == nil {
			err = s.Read(name, data, m.namespace)
		}
		errs = append(errs, err)
	}
	a.warn(s.Skipped)
	a.warn(s.Warnings)
	if err := errors.Join(errs...); err != nil {
		return s, errors.New(strings.Join(bound(strings.Split(err.Error(), "\n")), "\n"))
	}
	if len(s.Policies)+len(s.Namespaces) == 0 {
		return s, fmt.Errorf("no NetworkPolicy and no Namespace in %s", strings.Join(m.files, ", "))
	}
	return s, nil
}

// manifestFiles are the files that a name means.
func manifestFiles(name string) ([]string, error) {
	if name == "-" {
		return []string{name}, nil
	}
	fi, err := os.Stat(name)
	if err != nil || !fi.IsDir() {
		return []string{name}, err
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries { // in the order of their names, as kubectl has it, and none of directories below
		if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(name, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s has no .yaml, .yml or .json file", name)
	}
	return files, nil
}

// done is what became of an object.
type done struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Result    string `json:"result"` // created, configured, unchanged or deleted
}

func (d done) String() string {
	name := d.Name
	if d.Namespace != "" {
		name = d.Namespace + "/" + name
	}
	return strings.ToLower(d.Kind) + " " + name
}

func (a *app) printDone(all []done, dryRun bool) error {
	if !a.output.forPeople() {
		return a.print(all, nil)
	}
	suffix := ""
	if dryRun {
		suffix = " (dry run)"
	}
	for _, d := range all {
		if _, err := fmt.Fprintf(a.stdout, "%s %s%s\n", d, d.Result, suffix); err != nil {
			return err
		}
	}
	return nil
}

// policies reads what etcd holds of them, and warns of what cannot be read.
func (a *app) policies(ctx context.Context) (held *etcdstore.Policies, err error) {
	err = a.ask(ctx, func(ctx context.Context, s *etcdstore.Store) (err error) {
		held, err = s.Policies(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	var lines []string
	for key, bad := range held.Unreadable {
		lines = append(lines, fmt.Sprintf("%s cannot be read, and counts as a deny: %v", key, bad))
	}
	slices.Sort(lines)
	if should, are, differ := held.Lost(); differ {
		lines = append(lines, fmt.Sprintf("etcd holds %s, and there should be %d: hosts keep those that went away without a word; "+
			"put them back, or accept this by: overlayctl policy confirm", plural(are, "policy"), should))
	}
	a.warn(lines)
	return held, nil
}

// changePolicies writes what decide makes of what etcd holds, again if somebody else was faster.
func (a *app) changePolicies(ctx context.Context, dryRun bool, decide func(*etcdstore.Policies) (etcdstore.PolicyChange, error)) (err error) {
	for range policyTries {
		held, bad := a.policies(ctx)
		if bad != nil {
			return bad
		}
		change, bad := decide(held)
		if bad != nil || dryRun {
			return bad
		}
		err = a.ask(ctx, func(ctx context.Context, s *etcdstore.Store) error { return s.WritePolicies(ctx, held, change) })
		if !errors.Is(err, etcdstore.ErrConflict) {
			return err
		}
	}
	return err
}

func (a *app) policyApplyCommand() *cobra.Command {
	var m manifests
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Put policies in force, and describe namespaces",
		Long: `Put policies in force, and describe namespaces: files as for kubectl, of NetworkPolicies of networking.k8s.io/v1 and
Namespaces, whose labels count and whose annotation overlayd/policy-default may say allow or deny. Other kinds are skipped. All
files are read and checked before anything is written. Policies that are in no file stay as they are.`,
		Example: `  overlayctl policy apply -n dev -f ingress-def.yaml
  overlayctl policy apply -f policies/ --dry-run`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.read(m)
			if err != nil {
				return err
			}
			var all []done
			err = a.changePolicies(cmd.Context(), m.dryRun, func(held *etcdstore.Policies) (c etcdstore.PolicyChange, err error) {
				c, all = compare(held, s)
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

// compare says what has to be written for files to be in force.
func compare(held *etcdstore.Policies, s manifest.Set) (c etcdstore.PolicyChange, all []done) {
	result := func(there, same bool) string {
		switch {
		case !there:
			return "created"
		case same:
			return "unchanged"
		}
		return "configured"
	}
	for _, n := range s.Namespaces {
		have, there := held.Namespaces[n.Name]
		if n.Default == "" && held.Unreadable[etcdstore.NamespaceKey(n.Name)] == nil {
			n.Default = have.Default // a file of labels opens nothing
		}
		r := result(there, sameNamespace(have, n) && held.Unreadable[etcdstore.NamespaceKey(n.Name)] == nil)
		if r != "unchanged" {
			c.Namespaces = append(c.Namespaces, n)
		}
		all = append(all, done{Kind: "Namespace", Name: n.Name, Result: r})
	}
	for _, p := range s.Policies {
		have, there := held.Policies[p.Key()]
		r := result(there || held.Unreadable[etcdstore.PolicyKey(p.Key())] != nil, there && samePolicy(have, p))
		if r != "unchanged" {
			c.Put = append(c.Put, p)
		}
		all = append(all, done{Kind: "NetworkPolicy", Namespace: p.Namespace, Name: p.Name, Result: r})
	}
	return c, all
}

// samePolicy compares policies as they are written: what is empty and what is not there are the same.
func samePolicy(a, b policy.Policy) bool {
	x, errX := manifest.Object(a)
	y, errY := manifest.Object(b)
	return errX == nil && errY == nil && reflect.DeepEqual(x, y)
}

func sameNamespace(a, b policy.Namespace) bool {
	return reflect.DeepEqual(manifest.NamespaceObject(a), manifest.NamespaceObject(b))
}
