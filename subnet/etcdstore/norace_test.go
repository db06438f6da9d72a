//go:build !race

package etcdstore

// manyHosts is how many hosts claim at once.
const manyHosts = 256
