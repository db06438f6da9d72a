package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

func (a *app) endpointsLabelCommand() *cobra.Command {
	f := &endpointFlags{}
	cmd := &cobra.Command{
		Use:   "label (NAME | NAMESPACE/NAME | IP | CONTAINER-ID) (KEY=VALUE | KEY-)...",
		Short: "Change labels of one of this host's containers",
		Long: `Change labels of one of this host's containers, or take some away. It is in force at once if overlayd runs, and else when it
does. What is changed so counts before what the container's runtime says, as long as the container lives.`,
		Example: "  overlayctl endpoints label dev/web-0 app=web tier-",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError{errors.New("missing argument: the container, and KEY=VALUE or KEY-")}
			}
			changes, err := parseChanges(args[1:])
			if err != nil {
				return usageError{err}
			}
			e, err := a.findEndpoint(cmd.Context(), f, args[0])
			if err != nil {
				return err
			}
			if e.dataDir == "" {
				return fmt.Errorf("%s/%s: its labels are Docker's to say, or cannot be changed by who is not root", e.Namespace, e.Name)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
			defer cancel()
			if e.Identity, err = relabelEndpoint(ctx, e, changes); err != nil {
				return err
			}
			return a.print(e, func(w io.Writer) { row(w, e.Namespace+"/"+e.Name, labelText(e.Labels)) })
		},
	}
	f.registerConf(cmd.Flags())
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", "", "its `namespace`")
	return cmd
}

// parseChanges parses key=value, and key- which takes it away.
func parseChanges(args []string) (map[string]*string, error) {
	changes := map[string]*string{}
	for _, arg := range args {
		key, value, err := parseLabelChange(arg)
		if err != nil {
			return nil, err
		}
		changes[key] = value
	}
	return changes, nil
}

// parseLabelChange parses key=value, and key- which takes it away: then there is no value.
func parseLabelChange(text string) (key string, value *string, err error) {
	key, set, ok := strings.Cut(text, "=")
	if ok {
		return key, &set, nil
	}
	if key, ok = strings.CutSuffix(text, "-"); !ok {
		return "", nil, fmt.Errorf("%q is neither KEY=VALUE nor KEY-", text)
	}
	return key, nil, nil
}

func (a *app) endpointsWatchCommand() *cobra.Command {
	f := &endpointFlags{}
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show the containers, then every change of one, until interrupted",
		Long: `Show the containers, then every change of one, until interrupted. It looks once a second: several changes of one container
within that time are told as one. With -o json every line is an object.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			wanted, err := f.wanted()
			if err != nil {
				return err
			}
			w := endpointWatcher{app: a, all: f.all}
			if a.output.forPeople() {
				if err := w.line(append([]string{"EVENT"}, a.endpointHeader(f.all)...)); err != nil {
					return err
				}
			}
			for said := error(nil); ; {
				list, err := a.endpoints(cmd.Context(), f)
				switch {
				case cmd.Context().Err() != nil:
					return nil
				case err != nil && w.known == nil:
					return err
				case err != nil && (said == nil || said.Error() != err.Error()):
					a.warn([]string{err.Error()})
				case err == nil:
					err = w.catchUp(slices.DeleteFunc(list, func(e endpoint) bool { return !wanted(e) }))
					if err != nil {
						return outputError{err}
					}
				}
				said = err
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(time.Second):
				}
			}
		},
	}
	f.register(cmd)
	return cmd
}

// endpointWatcher prints changes of endpoints.
type endpointWatcher struct {
	*app
	all   bool
	known map[string]endpoint // as they were printed last
}

// id tells endpoints apart: those of other hosts have nothing but addresses.
func (e endpoint) id() string {
	if e.Host != "" {
		return e.Host + " " + addresses(e)
	}
	return e.Network + " " + e.ContainerID + " " + e.IfName
}

// catchUp prints how the list differs from what is known.
func (w *endpointWatcher) catchUp(list []endpoint) (err error) {
	before := w.known
	w.known = map[string]endpoint{}
	for _, e := range list {
		w.known[e.id()] = e
	}
	for _, id := range slices.Sorted(maps.Keys(before)) {
		if _, still := w.known[id]; !still {
			err = errors.Join(err, w.event(removed, before[id]))
		}
	}
	for _, e := range list {
		if old, known := before[e.id()]; !known {
			err = errors.Join(err, w.event(added, e))
		} else if !reflect.DeepEqual(old, e) {
			err = errors.Join(err, w.event(changed, e))
		}
	}
	return err
}

func (w *endpointWatcher) event(kind string, e endpoint) error {
	if w.output.forPeople() {
		return w.line(append([]string{kind}, w.endpointCells(w.all, e)...))
	}
	data, err := json.Marshal(struct {
		Event string `json:"event"`
		endpoint
	}{kind, e})
	if err == nil && w.output == "yaml" {
		data, err = yaml.JSONToYAML(data)
		data = append([]byte("---\n"), data...)
	} else {
		data = append(data, '\n')
	}
	if err != nil {
		return err
	}
	_, err = w.stdout.Write(data)
	return err
}

// line writes one row; nobody knows the rows to come.
func (w *endpointWatcher) line(cells []string) error {
	t := tabwriter.NewWriter(w.stdout, 16, 0, 2, ' ', 0)
	row(t, cells...)
	return t.Flush()
}
