// Package integration runs the real binaries on hosts that are network namespaces, with a real etcd, cnitool and
// the reference CNI plugins. It holds only tests and the laboratory that they are made in; they need root.
package integration
