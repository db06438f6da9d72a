// Package policy tests network policies with real packets: two hosts in network namespaces with a real etcd, the daemon and the
// CNI plugin; each ordered pair of containers in both families; what is expected comes from cyclonus' evaluator and from one of
// the tests' own, never from the compiler under test.
package policy
