package identity

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/policy"
)

// TestDerive has each caller's calls as they were seen, and what outweighs what.
func TestDerive(t *testing.T) {
	t.Parallel()
	const alloc = "0b9e7c52-52d6-4b0a-9a3e-8d7c6b5a4f3e"
	for name, c := range map[string]struct {
		given Given
		want  policy.Identity
		notes []string
	}{
		"nothing is known": {Given{ContainerID: "c1"}, policy.Identity{Namespace: "default", Name: "c1"}, nil},
		"CRI": {Given{
			ContainerID: "f00d", Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=dev;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=f00d;K8S_POD_UID=u",
			Conf: Conf{Annotations: map[string]string{LabelsKey: "tier=db, app=annotated", PortsKey: "http:80/tcp,dns:53/udp", "other": "x"}},
			Runtime: &Runtime{criNamespace, "f00d", map[string]string{
				"app": "web", "io.cri-containerd.kind": "sandbox", "io.containerd.image": "x", NamespaceKey: "of-an-image", "overlayd/nomad-job": "of-an-image",
			}},
		}, policy.Identity{
			Namespace: "dev", Name: "web-0", Labels: map[string]string{"app": "annotated", "tier": "db"},
			Ports: []policy.NamedPort{{Name: "http", Port: 80, Protocol: "TCP"}, {Name: "dns", Port: 53, Protocol: "UDP"}},
		}, nil},
		"ctr": {
			Given{ContainerID: "prod-db", Runtime: &Runtime{"prod", "db", map[string]string{"role": "db"}}},
			policy.Identity{Namespace: "prod", Name: "db", Labels: map[string]string{"role": "db"}}, nil,
		},
		"containerd's namespace is another's": {
			Given{ContainerID: "prod-db", Conf: Conf{Namespaces: map[string]string{"prod": "live"}}, Runtime: &Runtime{Namespace: "prod", ID: "db"}},
			policy.Identity{Namespace: "live", Name: "db"}, nil,
		},
		"containerd's namespace is no name": {
			Given{ContainerID: "a.b-db", Runtime: &Runtime{Namespace: "a.b", ID: "db"}},
			policy.Identity{Namespace: "default", Name: "db"}, []string{`containerd's namespace: "a.b" is no name of a namespace: dropped`},
		},
		"nerdctl": {
			Given{ContainerID: "default-" + strings.Repeat("a", 64), Args: "NERDCTL_CNI_DHCP_HOSTNAME=web", Runtime: &Runtime{
				"default", strings.Repeat("a", 64), map[string]string{
					"nerdctl/name": "web", "nerdctl/hostname": "h", "app": "web", NamespaceKey: "shop", PortsKey: "http:8080",
				},
			}},
			policy.Identity{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}, Ports: []policy.NamedPort{{Name: "http", Port: 8080, Protocol: "TCP"}}}, nil,
		},
		"Nomad": {
			Given{
				ContainerID: alloc, Args: "IgnoreUnknown=true;LABELS=app:web,tier:front;NOMAD_REGION=global;NOMAD_NAMESPACE=dev;" +
					"NOMAD_JOB_ID=shop=1;NOMAD_GROUP_NAME=web;NOMAD_ALLOC_ID=" + alloc,
				Conf: Conf{Labels: map[string]string{"tier": "weaker", "zone": "a"}},
			},
			policy.Identity{Namespace: "dev", Name: "web-0b9e7c52", Labels: map[string]string{
				"app": "web", "tier": "front", "zone": "a", "overlayd/nomad-group": "web", "overlayd/nomad-region": "global",
			}},
			[]string{`CNI_ARGS: "overlayd/nomad-job"="shop=1" is no label as Kubernetes has them: dropped`},
		},
		"who calls says the namespace": {
			Given{ContainerID: "c", Args: "NOMAD_NAMESPACE=d;K8S_POD_NAMESPACE=c;NAMESPACE=a;NAME=n", Conf: Conf{Namespace: "b"}},
			policy.Identity{Namespace: "a", Name: "n"}, nil,
		},
		"then the configuration": {
			Given{ContainerID: "c", Args: "NOMAD_NAMESPACE=d;K8S_POD_NAMESPACE=c", Conf: Conf{Namespace: "b"}},
			policy.Identity{Namespace: "b", Name: "c"}, nil,
		},
		"what is wrong is dropped": {
			Given{ContainerID: "c", Args: "NAMESPACE=No_One;K8S_POD_NAMESPACE=c;LABELS=a b:c,app:web,lone,x:-y;PORTS=http:0,http:80,HTTP:1,http:81,dns:53/ip"},
			policy.Identity{Namespace: "c", Name: "c", Labels: map[string]string{"app": "web"}, Ports: []policy.NamedPort{{Name: "http", Port: 80, Protocol: "TCP"}}},
			[]string{
				`NAMESPACE in CNI_ARGS: "No_One" is no name of a namespace: dropped`,
				`LABELS in CNI_ARGS: "lone" is not key:value: dropped`,
				`LABELS in CNI_ARGS: "a b"="c" is no label as Kubernetes has them: dropped`,
				`LABELS in CNI_ARGS: "x"="-y" is no label as Kubernetes has them: dropped`,
				`PORTS in CNI_ARGS: "http:0": 0 is no port: dropped`,
				`PORTS in CNI_ARGS: "HTTP:1": "HTTP": a port's name has up to 15 lower-case letters, digits and -, and a letter among them: dropped`,
				`PORTS in CNI_ARGS: "dns:53/ip": "IP" is none of tcp, udp and sctp: dropped`,
			},
		},
	} {
		got, notes := Derive(c.given)
		if diff := cmp.Diff(c.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(c.notes, notes, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: notes (-want +got):\n%s", name, diff)
		}
	}
}

// TestTenThousandLabels has an image with them: those of whoever runs it stay, and what is told is short.
func TestTenThousandLabels(t *testing.T) {
	t.Parallel()
	labels := map[string]string{}
	for i := range 10000 {
		labels[fmt.Sprintf("a%05d", i)] = "x"
		labels[fmt.Sprintf("b%05d\x1b[2J", i)] = strings.Repeat("y", 4000)
	}
	got, notes := Derive(Given{ContainerID: "c", Args: "LABELS=zzz:mine", Runtime: &Runtime{"default", "c", labels}})
	if len(got.Labels) != policy.MaxLabels || got.Labels["zzz"] != "mine" {
		t.Errorf("%d labels, zzz=%s", len(got.Labels), got.Labels["zzz"])
	}
	if len(notes) > maxNotes || !strings.HasPrefix(notes[0], "9745 labels more than the 256, and 16 KiB") {
		t.Errorf("notes: %q", notes)
	}
	for _, note := range notes {
		if len(note) > 300 || strings.ContainsRune(note, '\x1b') {
			t.Errorf("a note of %d bytes: %q", len(note), note)
		}
	}
}

func TestRelabel(t *testing.T) {
	t.Parallel()
	is := policy.Identity{Labels: map[string]string{"a": "1", "b": "2"}}
	three := "3"
	got := Relabel(is, map[string]*string{"a": nil, "c": &three, "gone": nil})
	if want := map[string]string{"b": "2", "c": "3"}; !maps.Equal(got.Labels, want) {
		t.Errorf("labels %v, want %v", got.Labels, want)
	}
	if len(is.Labels) != 2 {
		t.Errorf("the identity itself changed: %v", is.Labels)
	}
}
