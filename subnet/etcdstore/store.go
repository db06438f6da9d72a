// Package etcdstore keeps leases in etcd, in flannel's schema: it claims, keeps, lists and watches them.
package etcdstore

// The contract that the agent and overlayctl are written against (helpers: keep the names, improve the rest).
//
//	type Config struct {
//		Endpoints                  []string
//		Prefix                     string // like /coreos.com/network
//		CAFile, CertFile, KeyFile  string
//		Username, PasswordFile     string
//	}
//	func New(cfg Config, log *slog.Logger) (*Store, error)            // validates, reads files; no network I/O
//	func (s *Store) Close() error
//	func (s *Store) Network(ctx) (raw []byte, modRevision int64, err error) // wraps ErrNoNetwork, naming the key
//	func (s *Store) InitNetwork(ctx, raw []byte) (created bool, err error)  // writes only where there is none
//	func (s *Store) SetNetwork(ctx, raw []byte, modRevision int64) error    // compare-and-swap; 0: create
//	func (s *Store) Leases(ctx) (Listing, error)           // Listing{Revision int64; Records []subnet.Record; Skipped []Skipped{Key string; Err error}}
//	func (s *Store) Expiry(ctx, leaseID int64) (time.Time, error)           // zero: does not expire
//	func (s *Store) Watch(ctx, ...)                        // for `overlayctl leases watch`
//	func (s *Store) Release(ctx, record subnet.Record) error                // compare ModRevision, delete
//	func (s *Store) Join(JoinConfig) *Member
//
//	type JoinConfig struct { HostID, Host string; TTL time.Duration; Previous []netip.Prefix /* subnets it had */; … }
//
//	// Member is one host's membership of the network: it holds the host's lease and follows the peers'.
//	func (m *Member) Run(ctx) error               // until ctx ends; retries everything else inside
//	func (m *Member) Advertise(l subnet.Lease)    // what the own lease should say: Backend and per family PublicIP and Data; Subnet is ignored. The claim waits for the first call; later calls change the value by CAS
//	func (m *Member) Changed() <-chan struct{}    // capacity 1: something is there to Take
//	func (m *Member) Take() Update                // never blocks
//	type Update struct {
//		Network  *subnet.Network           // the configuration in force; nil until known
//		Own      Own                       // State (Waiting, Claiming, Held, Taken…), Record, Reason string, Expires time.Time
//		Connected bool; Err error          // is etcd answering; the last error
//		Peers    map[string]*subnet.Record // lease key → record of each peer that changed since the last Take; nil: gone
//		Complete bool                      // Peers of this and the earlier Takes are the whole of etcd at Revision
//		Revision int64
//	}
