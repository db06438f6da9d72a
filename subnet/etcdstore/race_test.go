//go:build race

package etcdstore

// manyHosts is how many hosts claim at once; the race detector makes each ten times as dear.
const manyHosts = 64
