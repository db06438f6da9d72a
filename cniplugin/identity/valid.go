package identity

import (
	"errors"
	"strconv"
	"strings"

	"github.com/overlayd/overlayd/policy"
)

// ValidNamespace says whether a namespace may be called so.
func ValidNamespace(name string) bool { return policy.ValidateNamespace(name) == nil }

// ValidLabel says whether Kubernetes would take the label.
func ValidLabel(key, value string) bool {
	return policy.ValidateLabels(map[string]string{key: value}) == nil
}

// ParsePort parses name:80/tcp; without a protocol it is TCP.
func ParsePort(text string) (policy.NamedPort, error) {
	name, rest, ok := strings.Cut(text, ":")
	number, protocol, hasProtocol := strings.Cut(rest, "/")
	if !hasProtocol {
		protocol = "tcp"
	}
	n, err := strconv.ParseUint(number, 10, 16)
	p := policy.NamedPort{Name: name, Port: uint16(n), Protocol: policy.Protocol(strings.ToUpper(protocol))}
	if !ok || err != nil {
		return p, errors.New("it must be as http:80/tcp")
	}
	return p, p.Validate()
}
