// Package manifest reads and writes policies and namespaces as files have them: YAML or JSON, as kubectl takes them, with the
// defaults and the validation of Kubernetes' API server. It is strict: a field that nobody knows is a typing mistake.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/overlayd/overlayd/policy"
)

// DefaultAnnotation of a namespace says allow or deny: what counts there for containers that no policy selects.
const DefaultAnnotation = "overlayd/policy-default"

const (
	apiVersion = "networking.k8s.io/v1"
	// maxNodes bounds what a file's aliases can blow up.
	maxNodes = 1 << 20
)

// Set is what files say.
type Set struct {
	Policies   []policy.Policy
	Namespaces []policy.Namespace
	Warnings   []string // each begins with file:line
	Skipped    []string // objects that are none of ours, in the same manner

	where map[string]string // by kind and name
}

// Read adds what a file says; name is for messages. Policies without a namespace are of the given one, or of "default" if that is
// empty; if it is not, one of another namespace is an error, as kubectl has it. The error names each mistake by file, line
// and field, and s is of no use then.
func (s *Set) Read(name string, data []byte, namespace string) error {
	r := &reader{Set: s, file: name, namespace: namespace}
	if s.where == nil {
		s.where = map[string]string{}
	}
	documents := yaml.NewDecoder(bytes.NewReader(tabsAlone.ReplaceAll(data, nil)))
	for {
		var n yaml.Node
		err := documents.Decode(&n)
		if errors.Is(err, io.EOF) {
			return errors.Join(r.errs...)
		}
		if err != nil {
			return errors.Join(append(r.errs, r.syntax(err))...)
		}
		if len(n.Content) == 1 && !isNull(n.Content[0]) {
			r.document(n.Content[0], "")
		}
	}
}

// tabsAlone are lines, up to their end, of blanks with a tab among them, and a comment perhaps: a YAML parser takes the tab for an
// indentation.
var tabsAlone = regexp.MustCompile(`(?m)^ *\t[ \t]*(#[^\r\n]*)?\r?$`)

var atLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntax is a mistake of YAML's in our words.
func (r *reader) syntax(err error) error {
	text := err.Error()
	if m := atLine.FindStringSubmatch(text); m != nil {
		line := m[1]
		if line == "" {
			line = "1"
		}
		text = line + ": " + m[2]
	}
	if strings.Contains(text, "cannot start any token") {
		text += ": YAML is indented by spaces, not tabs"
	}
	return fmt.Errorf("%s:%s", r.file, text)
}

// reader reads one file.
type reader struct {
	*Set
	file, namespace string
	errs            []error
	nodes           int

	object string         // what is read, for messages
	lines  map[string]int // of the object's fields
}

func (r *reader) fail(line int, format string, args ...any) {
	r.errs = append(r.errs, errors.New(r.at(line)+r.object+fmt.Sprintf(format, args...)))
}

func (r *reader) at(line int) string { return fmt.Sprintf("%s:%d: ", r.file, line) }

// document reads an object, or a list of them; kind is that of a list's items, which need not say it.
func (r *reader) document(n *yaml.Node, kind string) {
	r.object, r.lines = "", map[string]int{}
	n, ok := r.step(n)
	if !ok {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n.Line, "an object is wanted, with apiVersion and kind")
		return
	}
	version := r.peek(n, "apiVersion")
	if k := r.peek(n, "kind"); k != "" || kind == "" {
		kind = k
	} else if version == "" {
		version = apiVersion
	}
	group, _, _ := strings.Cut(version, "/")
	switch {
	case kind == "" || version == "":
		r.fail(n.Line, "apiVersion and kind must be set: %s and NetworkPolicy", apiVersion)
	case version == "v1" && kind == "List", version == apiVersion && kind == "NetworkPolicyList":
		r.list(n, strings.TrimSuffix(kind, "List"))
	case version == apiVersion && kind == "NetworkPolicy":
		r.policy(n)
	case version == "v1" && kind == "Namespace":
		r.describe(n)
	case kind == "NetworkPolicy":
		r.fail(n.Line, "NetworkPolicy of %q: only that of %s is known", version, apiVersion)
	case version == "v1", group == "apps", group == "batch", version == apiVersion:
		r.Skipped = append(r.Skipped, r.at(n.Line)+fmt.Sprintf("%.60q is neither NetworkPolicy nor Namespace: skipped", kind))
	default:
		r.fail(n.Line, "%.60q of %.60q: only NetworkPolicy of %s and Namespace of v1 are known", kind, version, apiVersion)
	}
}

func (r *reader) list(n *yaml.Node, kind string) {
	var items []*yaml.Node
	r.fields("", n, known{
		"apiVersion": ignore, "kind": ignore, "metadata": ignore,
		"items": func(path string, n *yaml.Node) {
			r.items(path, n, func(_ string, n *yaml.Node) { items = append(items, n) })
		},
	})
	for _, item := range items {
		r.document(item, kind)
	}
}

// policy reads a NetworkPolicy.
func (r *reader) policy(n *yaml.Node) {
	p := policy.Policy{}
	r.object = "NetworkPolicy: "
	failed, line := len(r.errs), n.Line
	r.fields("", n, known{
		"apiVersion": ignore, "kind": ignore, "status": ignore,
		"metadata": func(path string, n *yaml.Node) { p.Name, p.Namespace, _, _ = r.metadata(path, n) },
		"spec":     func(path string, n *yaml.Node) { p.Spec = r.spec(path, n) },
	})
	if p.Name != "" {
		r.object = fmt.Sprintf("NetworkPolicy %q: ", p.Name)
	}
	switch {
	case p.Namespace == "" && r.namespace == "":
		p.Namespace = "default"
	case p.Namespace == "":
		p.Namespace = r.namespace
	case r.namespace != "" && p.Namespace != r.namespace:
		r.fail(r.line("metadata.namespace"), "the namespace from the provided object %q does not match the namespace %q: "+
			"leave -n out, or pass -n %s", p.Namespace, r.namespace, p.Namespace)
	}
	complete(&p.Spec)
	if len(r.errs) > failed {
		return // what could not be read would be missed below
	}
	problems := p.Validate()
	slices.SortStableFunc(problems, func(a, b policy.Problem) int { return r.line(a.Field) - r.line(b.Field) })
	for _, bad := range problems {
		r.fail(max(r.line(bad.Field), line), "%v", bad)
	}
	r.canonical(&p)
	if r.once(line, "NetworkPolicy "+p.Key()) {
		r.Policies = append(r.Policies, p)
	}
}

// once says whether an object is the first of its name; another is a mistake, for which of them counts nobody could tell.
func (r *reader) once(line int, what string) bool {
	if before, again := r.where[what]; again {
		r.fail(line, "%s is there already: %s", what, strings.TrimSuffix(before, ": "))
		return false
	}
	r.where[what] = r.at(line)
	return true
}

// describe reads a Namespace.
func (r *reader) describe(n *yaml.Node) {
	var ns policy.Namespace
	var annotations map[string]string
	r.object = "Namespace: "
	failed, line := len(r.errs), n.Line
	r.fields("", n, known{
		"apiVersion": ignore, "kind": ignore, "spec": ignore, "status": ignore,
		"metadata": func(path string, n *yaml.Node) { ns.Name, _, ns.Labels, annotations = r.metadata(path, n) },
	})
	if ns.Name == "" {
		r.fail(line, "metadata.name: Required value: name or generateName is required")
	}
	if own, ok := ns.Labels[policy.NameLabel]; ok && own != ns.Name {
		r.fail(r.line("metadata.labels"), "metadata.labels: Invalid value: %q: %s is always the name of the namespace", own, policy.NameLabel)
	}
	delete(ns.Labels, policy.NameLabel)
	if d, ok := annotations[DefaultAnnotation]; ok {
		if ns.Default = policy.Default(d); ns.Default.Validate() != nil {
			r.fail(r.line("metadata.annotations"), "metadata.annotations: %s: Unsupported value: %q: supported values: \"allow\", \"deny\"", DefaultAnnotation, d)
		}
	}
	if len(r.errs) > failed {
		return
	}
	if err := ns.Validate(); err != nil {
		r.fail(r.line("metadata"), "metadata: %v", err)
	}
	if r.once(line, "Namespace "+ns.Name) {
		r.Namespaces = append(r.Namespaces, ns)
	}
}

// complete fills in the default of policyTypes.
func complete(s *policy.Spec) {
	if len(s.PolicyTypes) == 0 {
		s.PolicyTypes = []policy.Type{policy.Ingress}
		if len(s.Egress) > 0 {
			s.PolicyTypes = append(s.PolicyTypes, policy.Egress)
		}
	}
}
