package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"time"
)

// DefaultContainerd is where containerd listens unless it is told otherwise.
const DefaultContainerd = "/run/containerd/containerd.sock"

const (
	// patience is how long containerd may take in all: it takes 1 ms.
	patience = 500 * time.Millisecond
	// maxSplits is how many names in containerd one CNI_CONTAINERID may stand for.
	maxSplits = 8
	// maxContainerdName is containerd's own limit of ids and namespaces.
	maxContainerdName = 76

	criNamespace = "k8s.io"
)

// Lookup asks the containerd that listens at socket for the container that CNI calls containerID; nil: it does not know it, or
// there is no containerd. The error says what of it could not be asked; what is known then is little.
func Lookup(ctx context.Context, socket, containerID, cniArgs string) (*Runtime, error) {
	calls := callsOf(containerID, cniArgs)
	if socket == "" || len(calls) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("containerd: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	answers, err := callAll(conn, calls)
	if err != nil {
		return nil, fmt.Errorf("containerd at %s did not say what it has of the container: %w", socket, err)
	}
	var found *Runtime
	for i, c := range calls {
		labels, ok := c.labels(answers[i], c.id)
		switch {
		case !ok:
		case found != nil:
			return nil, fmt.Errorf("containerd has container %s in namespace %s and %s in %s: it is not clear which is attached",
				found.ID, found.Namespace, c.id, c.namespace)
		default:
			found = &Runtime{c.namespace, c.id, labels}
		}
	}
	return found, nil
}

// call is a question about one container.
type call struct {
	path, namespace, id string
	labels              func(answer []byte, id string) (map[string]string, bool)
}

// callsOf says what to ask. Kubernetes' CRI calls pods by their ids in containerd, which from version 2 has them in a store of
// their own; ctr and nerdctl join namespace and id with a dash, which both may have in them. Others have no containerd.
func callsOf(containerID, cniArgs string) (calls []call) {
	args := parseArgs(cniArgs)
	container := func(namespace, id string) {
		if len(namespace) <= maxContainerdName && len(id) <= maxContainerdName && len(calls) < maxSplits {
			calls = append(calls, call{"/containerd.services.containers.v1.Containers/Get", namespace, id, labelsOfContainer})
		}
	}
	switch {
	case args["NOMAD_ALLOC_ID"] != "" || args["NOMAD_JOB_ID"] != "":
	case args["K8S_POD_NAME"] != "":
		if container(criNamespace, containerID); len(calls) > 0 {
			calls = append(calls, call{"/containerd.services.sandbox.v1.Store/Get", criNamespace, containerID, labelsOfSandbox})
		}
	default:
		for i, r := range containerID {
			if r == '-' && i > 0 && i < len(containerID)-1 {
				container(containerID[:i], containerID[i+1:])
			}
		}
	}
	return calls
}

// labelsOfContainer reads GetContainerResponse{Container container = 1} and Container{string id = 1; map labels = 2}.
func labelsOfContainer(answer []byte, id string) (labels map[string]string, ok bool) {
	container := field(answer, 1)
	labels = map[string]string{}
	for n, value := range fields(container) {
		if n == 2 {
			labels[string(field(value, 1))] = string(field(value, 2))
		}
	}
	return labels, string(field(container, 1)) == id
}

// labelsOfSandbox reads StoreGetResponse{Sandbox sandbox = 1}, Sandbox{string sandbox_id = 1; map extensions = 7} and the
// Any{bytes value = 2} there that the CRI keeps.
func labelsOfSandbox(answer []byte, id string) (map[string]string, bool) {
	sandbox := field(answer, 1)
	var metadata struct {
		Metadata struct {
			Config struct {
				Labels map[string]string `json:"labels"`
			}
		}
	}
	for n, value := range fields(sandbox) {
		if n == 7 && string(field(value, 1)) == "metadata" {
			_ = json.Unmarshal(field(field(value, 2), 2), &metadata) // another form has no labels
		}
	}
	return metadata.Metadata.Config.Labels, string(field(sandbox, 1)) == id
}

// headers are those of the call, as HPACK (RFC 7541).
func (c call) headers() string {
	var b strings.Builder
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", c.path}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"containerd-namespace", c.namespace},
	} {
		b.WriteByte(0) // a literal, and nothing to remember; all are shorter than 127 bytes
		for _, text := range h {
			b.WriteByte(byte(len(text)))
			b.WriteString(text)
		}
	}
	return b.String()
}
