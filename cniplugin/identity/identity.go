// Package identity finds out what a container is to policies: its namespace, name, labels and named ports, from all that whoever
// runs it says of it. Nothing that is wrong there keeps a container from being attached: it is dropped, and told of.
package identity

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/policy"
)

// What one container may have besides labels ([policy.MaxLabels]). Beyond that is dropped, of the weakest source first: it would
// be every host's burden.
const (
	maxNotes = 8
)

// Given is what there is at an ADD.
type Given struct {
	ContainerID string // CNI_CONTAINERID
	Args        string // CNI_ARGS
	Conf        Conf
	Runtime     *Runtime // what the container's runtime has of it; nil: nothing
}

// Conf is what a network configuration says of a container.
type Conf struct {
	Namespaces  map[string]string // of policies, by those of containerd; one that is not there has the same name
	Namespace   string            // args.cni.namespace
	Labels      map[string]string // args.cni.labels
	Annotations map[string]string // of the pod: the capability io.kubernetes.cri.pod-annotations
}

// Runtime is what containerd or Docker has of a container. Labels may be the image's too.
type Runtime struct {
	Namespace string // of containerd
	ID        string
	Labels    map[string]string
}

// The keys that say something else than a label. The first two are labels of the runtime's, the others annotations of pods.
const (
	NamespaceKey = "overlayd/namespace"
	PortsKey     = "overlayd/ports" // an annotation too
	LabelsKey    = "overlayd/labels"
)

// Default is the namespace of a container of which nothing else is known.
const Default = "default"

// Derive is the identity of a container, and lines about what was dropped: what is more specific to the container counts before
// what is less so, and what its caller says before what its image may.
func Derive(g Given) (policy.Identity, []string) {
	d := deriver{args: parseArgs(g.Args)}
	var r Runtime
	if g.Runtime != nil {
		r = *g.Runtime
	}
	id := policy.Identity{Name: d.name(g.ContainerID, r), Namespace: d.namespace(g.Conf, r), Labels: d.allLabels(g.Conf, r)}
	if _, ok := policy.DNSLabel(id.Name); !ok {
		d.note("name: %s is none that DNS can have: it is not found by it", quote(id.Name))
	}
	id.Ports = d.ports([]source{
		{"PORTS in CNI_ARGS", d.args["PORTS"]}, {"annotation " + PortsKey, g.Conf.Annotations[PortsKey]}, {"label " + PortsKey, r.Labels[PortsKey]},
	})
	return id, d.notes
}

// deriver keeps the lines.
type deriver struct {
	args  map[string]string
	notes []string
}

// source is who says something, for people.
type source struct{ who, text string }

func (d *deriver) note(format string, args ...any) {
	switch len(d.notes) {
	case maxNotes:
	case maxNotes - 1:
		d.notes = append(d.notes, "and more")
	default:
		d.notes = append(d.notes, fmt.Sprintf(format, args...))
	}
}

// parseArgs are the pairs of CNI_ARGS; of two with one name the later counts, as it does for CNI's own library. A value may
// have more of "=" in it: Nomad's job ids do.
func parseArgs(args string) map[string]string {
	all := map[string]string{}
	for pair := range strings.SplitSeq(args, ";") {
		if name, value, ok := strings.Cut(pair, "="); ok {
			all[name] = value
		}
	}
	return all
}

func (d *deriver) namespace(c Conf, r Runtime) string {
	of := r.Namespace
	if mapped, ok := c.Namespaces[of]; ok {
		of = mapped
	}
	for _, s := range []source{
		{"NAMESPACE in CNI_ARGS", d.args["NAMESPACE"]},
		{"args.cni.namespace", c.Namespace},
		{"K8S_POD_NAMESPACE", d.args["K8S_POD_NAMESPACE"]},
		{"NOMAD_NAMESPACE", d.args["NOMAD_NAMESPACE"]},
		{"label " + NamespaceKey, r.Labels[NamespaceKey]},
		{"containerd's namespace", of},
	} {
		if s.text == "" {
			continue
		}
		if ValidNamespace(s.text) {
			return s.text
		}
		d.note("%s: %s is no name of a namespace: dropped", s.who, quote(s.text))
	}
	return Default
}

func (d *deriver) name(containerID string, r Runtime) string {
	nomad := d.args["NOMAD_GROUP_NAME"]
	if nomad != "" {
		nomad += "-" + containerID[:min(len(containerID), 8)]
	}
	for _, name := range []string{d.args["NAME"], d.args["K8S_POD_NAME"], nomad, r.Labels["nerdctl/name"], r.ID} {
		if policy.ValidName(name) {
			return name
		}
	}
	return containerID[:min(len(containerID), policy.MaxName)]
}

// nomadLabels are those of an allocation; not its id, since every new one would be a new set of labels.
var nomadLabels = map[string]string{
	"NOMAD_JOB_ID": "overlayd/nomad-job", "NOMAD_GROUP_NAME": "overlayd/nomad-group", "NOMAD_REGION": "overlayd/nomad-region",
}

// allLabels takes the strongest source first, so that the weakest is what has no room.
func (d *deriver) allLabels(c Conf, r Runtime) map[string]string {
	nomad := map[string]string{}
	for arg, key := range nomadLabels {
		if value := d.args[arg]; value != "" {
			nomad[key] = value
		}
	}
	all, size, over := map[string]string{}, 0, 0
	for _, s := range []struct {
		who    string
		labels map[string]string
	}{
		{"LABELS in CNI_ARGS", d.parseLabels("LABELS in CNI_ARGS", d.args["LABELS"])},
		{"args.cni.labels", c.Labels},
		{"annotation " + LabelsKey, d.parseLabels("annotation "+LabelsKey, c.Annotations[LabelsKey])},
		{"CNI_ARGS", nomad},
		{"label", ofRuntime(r.Labels)},
	} {
		for _, key := range slices.Sorted(maps.Keys(s.labels)) {
			value := s.labels[key]
			_, stronger := all[key]
			switch {
			case stronger:
			case !ValidLabel(key, value):
				d.note("%s: %s=%s is no label as Kubernetes has them: dropped", s.who, quote(key), quote(value))
			case len(all) == policy.MaxLabels || size+len(key)+len(value) > policy.MaxLabelBytes:
				over++
			default:
				all[key], size = value, size+len(key)+len(value)
			}
		}
	}
	if over > 0 {
		most := fmt.Sprintf("%d labels more than the %d, and %d KiB, that count: dropped", over, policy.MaxLabels, policy.MaxLabelBytes>>10)
		d.notes = append([]string{most}, d.notes[:min(len(d.notes), maxNotes-1)]...)
	}
	return all
}

// ofRuntime are labels without those that the runtime has for itself, and those that say what only we say.
func ofRuntime(labels map[string]string) map[string]string {
	kept := maps.Clone(labels)
	maps.DeleteFunc(kept, func(key, _ string) bool {
		return slices.ContainsFunc([]string{"nerdctl/", "io.containerd.", "io.cri-", "overlayd/"},
			func(prefix string) bool { return strings.HasPrefix(key, prefix) })
	})
	return kept
}

// parseLabels parses "app:web,tier:db"; "=" does as well, but CNI's library allows none in CNI_ARGS.
func (d *deriver) parseLabels(who, text string) map[string]string {
	labels := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		i := strings.IndexAny(pair, ":=")
		if i < 0 {
			d.note("%s: %s is not key:value: dropped", who, quote(pair))
			continue
		}
		labels[pair[:i]] = pair[i+1:]
	}
	return labels
}

func (d *deriver) ports(sources []source) (all []policy.NamedPort) {
	for _, s := range sources {
		if s.text == "" {
			continue
		}
		for text := range strings.SplitSeq(s.text, ",") {
			p, err := ParsePort(strings.TrimSpace(text))
			if err == nil && len(all) == policy.MaxPorts {
				err = fmt.Errorf("it is one more than the %d that count", policy.MaxPorts)
			}
			if err != nil {
				d.note("%s: %s: %v: dropped", s.who, quote(text), err)
				continue
			}
			if !slices.ContainsFunc(all, func(o policy.NamedPort) bool { return o.Name == p.Name && o.Protocol == p.Protocol }) {
				all = append(all, p)
			}
		}
		break // who is stronger says all
	}
	return all
}

// Relabel changes the labels of an identity; a nil value takes the label away.
func Relabel(id policy.Identity, changes map[string]*string) policy.Identity {
	id.Labels = maps.Clone(id.Labels)
	for key, value := range changes {
		if value == nil {
			delete(id.Labels, key)
			continue
		}
		if id.Labels == nil {
			id.Labels = map[string]string{}
		}
		id.Labels[key] = *value
	}
	return id
}

// quote makes of what others wrote something that fits a line.
func quote(text string) string {
	const most = 80
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return fmt.Sprintf("%q", text)
}

// Compare orders endpoints as people look for them.
func Compare(a, b policy.Identity) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
