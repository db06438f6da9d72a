//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The fast path's programs. Each looks at a packet, and either sends it on its way wholly as the slow way would have it, or
// leaves it untouched: what returns SLOW goes through bridge, routes, netfilter and vxlan as if nobody had looked.
//
//	from_container	ingress of the host's side of a container's link: wraps what is for a peer, and sends it
//	from_wire	ingress of the underlay's link: unwraps what a peer sent, and hands it to the container
//
// Both families are one code, of which the compiler makes two by the constant v6. Addresses in maps are IPv6's, IPv4's
// mapped (::ffff:192.0.2.1).
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define SLOW TC_ACT_UNSPEC // to tcx it is TCX_NEXT
#define AF_INET 2
#define AF_INET6 10
#define ALWAYS static __always_inline

// Why a packet goes the slow way, or that it does not. fastpath.go has the names for people, in this order.
enum way {
	NONE,       // to be decided yet
	SENT,       // fast, to a peer
	RECEIVED,   // fast, from a peer
	ELSEWHERE,  // not for a peer, or not by way of the gateway
	PROTOCOL,   // neither TCP nor UDP, a fragment, with options or extension headers, several UDP datagrams from a tunnel
	SIZE,       // over the MTU
	TTL,        // at its end
	SOURCE,     // not the sender's own address, or not from the host that has it
	CONTAINER,  // one whose packets must go the slow way
	FIRST,      // of a connection, or of one that is not established
	TRANSLATED, // its connection's addresses are, or a helper reads along
	UNSEEN,     // connections are tracked, but cannot be looked at
	CONGESTED,  // marked on the way, for the inner header to hear of
	GONE,       // what it would leave by: the container's link, the route to the peer
	REFUSED,    // by the kernel
	WAYS,
};

struct addr {
	__u32 w[4];
};

struct tunnel {
	struct addr addr;
	__be32 vni; // in the upper 24 bits, as the header has it
	__u32 link; // index of the vxlan link
	__be16 port;
	__u8 mac[6];
};

// What holds for all packets.
struct own {
	struct tunnel tunnels[2]; // over IPv4, IPv6; port 0: none
	__u64 until;              // ns of CLOCK_MONOTONIC: nothing is fast any more, as the daemon is gone; 0: the links end with it
	__u32 underlay;           // index of the link
	__u32 mtu;                // of containers
	__u32 hz;                 // jiffies a second
	__u32 udp, stream;        // ms that the kernel keeps UDP connections without use: unanswered ones, all others
	__u8 enabled;
	__u8 tracked; // something on this host tracks connections
	__u8 direct;  // some peers are reached without a tunnel
	__u8 pad;
};

enum { TUNNEL = 1, NEAR = 2, ZERO_CHECKSUM = 4, BY_KERNEL = 8 }; // the last: never fast, nor part of a wider one

struct peer {
	struct addr host, source;
	__u32 id; // of its counts
	__be16 port;
	__u8 mac[6];
	__u32 flags;
};

struct prefix {
	__u32 bits;
	struct addr addr;
};

struct local {
	__u32 link;
	__u8 mac[6], gateway[6];
	__u32 slow;
};

struct traffic {
	__u64 sent, received;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct own);
	__uint(max_entries, 1);
} consts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix);
	__type(value, struct peer);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct addr);
	__type(value, struct local);
	__uint(max_entries, 1 << 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} locals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, WAYS);
} ways SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__type(key, __u32);
	__type(value, struct traffic);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} traffics SEC(".maps");

// The kernel's connections, of which only this is looked at; the loader finds where it is. Not each kernel has the functions.
enum { SEEN_REPLY = 1 << 1, ASSURED = 1 << 2, NAT = 7 << 4, DYING = 1 << 9, HELPER = 1 << 13, ESTABLISHED = 3 };

struct ip_ct_tcp {
	__u8 state;
} __attribute__((preserve_access_index));

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} __attribute__((preserve_access_index));

struct nf_conn {
	__u32 timeout; // jiffies, absolute
	unsigned long status;
	union nf_conntrack_proto proto;
} __attribute__((preserve_access_index));

struct bpf_ct_opts {
	__s32 netns_id, error;
	__u8 l4proto, dir, reserved[2];
};

// Whether the functions are there: the loader knows. One cannot ask for their addresses, if they are a module's.
volatile const __u8 conntrack;

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *, struct bpf_sock_tuple *, __u32, struct bpf_ct_opts *, __u32) __weak __ksym;
extern void bpf_ct_release(struct nf_conn *) __weak __ksym;
extern int bpf_ct_change_timeout(struct nf_conn *, __u32) __weak __ksym;

// packet is what is read of an IP packet.
struct packet {
	struct prefix src, dst; // of all bits, as the trie is asked
	__be16 sport, dport;
	__u32 size; // of the IP packet; of the largest that a card makes of it
	__u8 proto, ecn, syn;
};

struct vxlanhdr {
	__be32 flags, vni;
};

// What stands before the inner IP header: the outer Ethernet header, IP, UDP, vxlan, the inner Ethernet header.
#define ROOM(v6) (((v6) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct udphdr) + sizeof(struct vxlanhdr) + ETH_HLEN)

ALWAYS int count(__u32 way)
{
	__u64 *n = bpf_map_lookup_elem(&ways, &way);
	if (n)
		++*n;
	return SLOW;
}

ALWAYS void count_peer(const struct peer *peer, int received)
{
	__u32 id = peer->id;
	struct traffic *t = bpf_map_lookup_elem(&traffics, &id);
	if (!t) {
		struct traffic none = {};
		bpf_map_update_elem(&traffics, &id, &none, BPF_NOEXIST);
		t = bpf_map_lookup_elem(&traffics, &id);
	}
	if (t && received)
		t->received++;
	else if (t)
		t->sent++;
	count(received ? RECEIVED : SENT);
}

// at is what stands at offset, of size bytes; NULL: it cannot be looked at.
ALWAYS void *at(struct __sk_buff *skb, __u32 offset, __u32 size)
{
	void *p = (void *)(long)skb->data;
	asm volatile("" : "+r"(p)); // or the compiler makes 32 bits of it where branches meet
	p += offset;
	return p + size > (void *)(long)skb->data_end ? NULL : p;
}

ALWAYS int same_mac(const __u8 *a, const __u8 *b)
{
	return *(__u32 *)a == *(__u32 *)b && *(__u16 *)(a + 4) == *(__u16 *)(b + 4);
}

ALWAYS int same_addr(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

ALWAYS void mapped(struct addr *a, __be32 v4)
{
	a->w[0] = a->w[1] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = v4;
}

ALWAYS const struct own *get_own(void)
{
	__u32 zero = 0;
	const struct own *c = bpf_map_lookup_elem(&consts, &zero);
	if (!c || !c->enabled || (c->until && bpf_ktime_get_coarse_ns() > c->until))
		return NULL;
	return c;
}

// parse reads the IP packet at offset, and says why it cannot be fast. What comes from a wire may be padded.
ALWAYS int parse(struct __sk_buff *skb, const __u32 offset, const int v6, const int padded, struct packet *p)
{
	const __u32 l4 = offset + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	__u32 headers, end;

	if (!at(skb, l4, sizeof(struct tcphdr))) // of UDP there may be less
		bpf_skb_pull_data(skb, skb->len < l4 + sizeof(struct tcphdr) ? skb->len : l4 + sizeof(struct tcphdr));
	p->src.bits = p->dst.bits = 128;
	if (v6) {
		struct ipv6hdr *ip = at(skb, offset, sizeof(*ip));
		if (!ip)
			return PROTOCOL;
		if (ip->version != 6)
			return PROTOCOL;
		end = l4 + bpf_ntohs(ip->payload_len);
		if (ip->hop_limit <= 1)
			return TTL;
		p->proto = ip->nexthdr;
		p->ecn = ip->flow_lbl[0] >> 4 & 3;
		__builtin_memcpy(&p->src.addr, &ip->saddr, 16);
		__builtin_memcpy(&p->dst.addr, &ip->daddr, 16);
		if (!(p->src.addr.w[0] | p->src.addr.w[1]) || !(p->dst.addr.w[0] | p->dst.addr.w[1]))
			return PROTOCOL; // of no container; IPv4's, mapped, are in the maps for IPv4
	} else {
		struct iphdr *ip = at(skb, offset, sizeof(*ip));
		if (!ip)
			return PROTOCOL;
		if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(0x3fff))
			return PROTOCOL;
		end = offset + bpf_ntohs(ip->tot_len);
		if (ip->ttl <= 1)
			return TTL;
		p->proto = ip->protocol;
		p->ecn = ip->tos & 3;
		mapped(&p->src.addr, ip->saddr);
		mapped(&p->dst.addr, ip->daddr);
	}
	if (end != skb->len && (end > skb->len || skb->len > ETH_ZLEN || !padded))
		return PROTOCOL;
	p->syn = 0;
	if (p->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = at(skb, l4, sizeof(*tcp));
		if (!tcp)
			return PROTOCOL;
		p->syn = tcp->syn;
		p->sport = tcp->source;
		p->dport = tcp->dest;
		headers = tcp->doff * 4;
	} else if (p->proto == IPPROTO_UDP) {
		struct udphdr *udp = at(skb, l4, sizeof(*udp));
		if (!udp)
			return PROTOCOL;
		p->sport = udp->source;
		p->dport = udp->dest;
		headers = sizeof(*udp);
	} else {
		return PROTOCOL;
	}
	p->size = skb->gso_size ? l4 - offset + headers + skb->gso_size : skb->len - offset;
	return NONE;
}

// judge says why a packet must go where rules, translation and the tracking of connections see it.
ALWAYS int judge(struct __sk_buff *skb, const struct own *c, const struct packet *p, const int v6)
{
	struct bpf_ct_opts opts = {.netns_id = BPF_F_CURRENT_NETNS, .l4proto = p->proto};
	struct bpf_sock_tuple tuple = {};
	int why = NONE;

	if (p->syn)
		return FIRST;
	if (!c->tracked)
		return NONE;
	if (!conntrack)
		return UNSEEN;
	if (v6) {
		__builtin_memcpy(tuple.ipv6.saddr, &p->src.addr, 16);
		__builtin_memcpy(tuple.ipv6.daddr, &p->dst.addr, 16);
		tuple.ipv6.sport = p->sport;
		tuple.ipv6.dport = p->dport;
	} else {
		tuple.ipv4.saddr = p->src.addr.w[3];
		tuple.ipv4.daddr = p->dst.addr.w[3];
		tuple.ipv4.sport = p->sport;
		tuple.ipv4.dport = p->dport;
	}
	struct nf_conn *ct = bpf_skb_ct_lookup(skb, &tuple, v6 ? sizeof(tuple.ipv6) : sizeof(tuple.ipv4), &opts, sizeof(opts));
	if (!ct) // the kernel takes up a TCP connection in the midst; one of UDP would end unseen under a flow
		return p->proto == IPPROTO_TCP ? NONE : FIRST;

	__u32 status = ct->status;
	__s32 left = ct->timeout - (__u32)bpf_jiffies64(), second = c->hz;
	if (status & (NAT | HELPER | DYING))
		why = TRANSLATED;
	else if (p->proto == IPPROTO_TCP) {
		// Its windows go stale from now on, and by them the kernel would take for invalid what goes the slow way again.
		// Without an entry it makes one anew.
		if (ct->proto.tcp.state != ESTABLISHED)
			why = FIRST;
		else if (left > second)
			bpf_ct_change_timeout(ct, 1000);
	} else if (!(status & ASSURED) && (opts.dir || status & SEEN_REPLY))
		why = FIRST; // for the kernel to see whether it is a stream
	else if (left < 20 * second)
		bpf_ct_change_timeout(ct, status & ASSURED ? c->stream : c->udp);
	bpf_ct_release(ct);
	return why;
}

// hop takes one from the TTL of the IP packet at offset, which parse has seen.
ALWAYS int hop(struct __sk_buff *skb, const __u32 offset, const int v6)
{
	if (v6) {
		struct ipv6hdr *ip = at(skb, offset, sizeof(*ip));
		if (!ip)
			return 0;
		ip->hop_limit--;
	} else {
		struct iphdr *ip = at(skb, offset, sizeof(*ip));
		if (!ip)
			return 0;
		__u32 sum = ip->check + bpf_htons(0x0100);
		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	}
	return 1;
}

// next_hop finds where on the underlay's link packets to a peer go. What cannot go there goes the slow way, which says so.
ALWAYS int next_hop(struct __sk_buff *skb, const struct own *c, const struct peer *to, __u32 size, const int v6,
		    struct bpf_redir_neigh *next)
{
	struct bpf_fib_lookup fib = {.ifindex = c->underlay};

	next->nh_family = fib.family = v6 ? AF_INET6 : AF_INET;
	if (to->flags & NEAR) {
		if (v6)
			__builtin_memcpy(next->ipv6_nh, &to->host, 16);
		else
			next->ipv4_nh = to->host.w[3];
		return 1;
	}
	fib.l4_protocol = IPPROTO_UDP;
	fib.tot_len = size;
	if (v6) {
		__builtin_memcpy(fib.ipv6_src, &c->tunnels[1].addr, 16);
		__builtin_memcpy(fib.ipv6_dst, &to->host, 16);
	} else {
		fib.ipv4_src = c->tunnels[0].addr.w[3];
		fib.ipv4_dst = to->host.w[3];
	}
	long got = bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_OUTPUT);
	if ((got != BPF_FIB_LKUP_RET_SUCCESS && got != BPF_FIB_LKUP_RET_NO_NEIGH) || fib.ifindex != c->underlay)
		return 0;
	next->nh_family = fib.family;
	__builtin_memcpy(next->ipv6_nh, fib.ipv6_dst, 16);
	return 1;
}

ALWAYS __u16 udp_source(struct __sk_buff *skb)
{
	// As udp_flow_src_port with the kernel's own range: a flow that changes ways keeps its path through the underlay.
	__u32 hash = bpf_get_hash_recalc(skb);
	hash ^= hash << 16;
	return 32768 + ((__u64)hash * (60999 - 32768) >> 32);
}

// encapsulate writes all headers but the outer Ethernet's, once the kernel has made room, which it may refuse.
ALWAYS int encapsulate(struct __sk_buff *skb, const struct tunnel *t, const struct peer *to, __u8 ecn, const int v6)
{
	const __u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
			    BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
			    (v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
	const __u32 l4 = ETH_HLEN + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	const __u16 source = udp_source(skb);

	if (bpf_skb_adjust_room(skb, ROOM(v6), BPF_ADJ_ROOM_MAC, flags))
		return count(REFUSED);
	struct udphdr *udp;
	if (!hop(skb, ETH_HLEN + ROOM(v6), v6))
		return TC_ACT_SHOT;
	void *outer = at(skb, ETH_HLEN, ROOM(v6));
	if (!outer)
		return TC_ACT_SHOT;
	if (ecn == 3)
		ecn = 2; // RFC 6040: the outer header starts anew
	if (v6) {
		struct ipv6hdr *ip = outer;
		*(__be32 *)ip = bpf_htonl(0x60000000 | ecn << 20);
		ip->payload_len = bpf_htons(skb->len - l4);
		ip->nexthdr = IPPROTO_UDP;
		ip->hop_limit = 64;
		__builtin_memcpy(&ip->saddr, &t->addr, 16);
		__builtin_memcpy(&ip->daddr, &to->host, 16);
		udp = (void *)(ip + 1);
	} else {
		struct iphdr *ip = outer;
		__u32 sum = 0;
		*(__be16 *)ip = bpf_htons(0x4500 | ecn);
		ip->tot_len = bpf_htons(skb->len - ETH_HLEN);
		ip->id = bpf_get_prandom_u32(); // routers may cut it
		ip->frag_off = 0;
		ip->ttl = 64;
		ip->protocol = IPPROTO_UDP;
		ip->check = 0;
		ip->saddr = t->addr.w[3];
		ip->daddr = to->host.w[3];
		#pragma unroll
		for (int i = 0; i < 10; i++)
			sum += ((__u16 *)ip)[i];
		sum = (sum & 0xffff) + (sum >> 16);
		ip->check = ~((sum & 0xffff) + (sum >> 16));
		udp = (void *)(ip + 1);
	}
	udp->source = bpf_htons(source);
	udp->dest = to->port;
	udp->len = bpf_htons(skb->len - l4);
	udp->check = 0;
	struct vxlanhdr *vxlan = (void *)(udp + 1);
	vxlan->flags = bpf_htonl(0x08000000);
	vxlan->vni = t->vni;
	struct ethhdr *inner = (void *)(vxlan + 1);
	__builtin_memcpy(inner->h_dest, to->mac, ETH_ALEN);
	__builtin_memcpy(inner->h_source, t->mac, ETH_ALEN);
	inner->h_proto = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	return NONE;
}

// send is from_container for a family.
ALWAYS int send(struct __sk_buff *skb, const struct own *c, const int v6)
{
	const struct tunnel *t = &c->tunnels[v6];
	struct bpf_redir_neigh next = {};
	struct packet p;
	__u32 mtu = 0;
	int why = parse(skb, ETH_HLEN, v6, 0, &p);
	if (why)
		return count(why);

	const struct peer *to = bpf_map_lookup_elem(&peers, &p.dst);
	struct ethhdr *eth = at(skb, 0, sizeof(*eth));
	if (!to || to->flags & BY_KERNEL || !eth)
		return count(ELSEWHERE);
	const struct local *l = bpf_map_lookup_elem(&locals, &p.src.addr);
	if (!l || l->link != skb->ifindex || !same_mac(eth->h_source, l->mac))
		return count(SOURCE);
	if (!same_mac(eth->h_dest, l->gateway))
		return count(ELSEWHERE);
	if (l->slow)
		return count(CONTAINER);
	if (p.size > c->mtu || skb->len + ROOM(v6) > 0xffff)
		return count(SIZE);
	why = judge(skb, c, &p, v6);
	if (why)
		return count(why);

	if (v6 && (to->flags & (TUNNEL | ZERO_CHECKSUM)) == TUNNEL) {
		// The kernel takes no checksum of 0 here unless told to, and here nobody can have the card finish another.
		if (!t->link || bpf_check_mtu(skb, t->link, &mtu, 0, 0) || !hop(skb, ETH_HLEN, v6))
			return count(GONE);
		eth = at(skb, 0, sizeof(*eth));
		if (!eth)
			return TC_ACT_SHOT;
		__builtin_memcpy(eth->h_dest, to->mac, ETH_ALEN);
		__builtin_memcpy(eth->h_source, t->mac, ETH_ALEN);
	} else {
		if (!next_hop(skb, c, to, p.size + (to->flags & TUNNEL ? ROOM(v6) : 0), v6, &next))
			return count(GONE);
		if (to->flags & TUNNEL)
			why = encapsulate(skb, t, to, p.ecn, v6);
		else if (!hop(skb, ETH_HLEN, v6))
			why = count(REFUSED);
		if (why)
			return why;
	}
	count_peer(to, 0);
	skb->mark = skb->priority = skb->tstamp = 0; // what the container's own host said of it
	if (!next.nh_family)
		return bpf_redirect(t->link, 0);
	return bpf_redirect_neigh(c->underlay, &next, sizeof(next), 0);
}

// receive is the rest of from_wire, for an inner packet at offset, which came from source; NULL: without a tunnel.
ALWAYS int receive(struct __sk_buff *skb, const struct own *c, const __u32 offset, const int v6, const struct addr *source)
{
	const int room = offset - ETH_HLEN;
	struct packet p;
	__u32 mtu = 0;
	int why = parse(skb, offset, v6, !source, &p);
	if (why)
		return source ? count(why) : SLOW;
	if (source && p.proto == IPPROTO_UDP && skb->gso_size)
		return count(PROTOCOL); // it would still be marked as a tunnel's, and who cuts it take it for one

	const struct local *l = bpf_map_lookup_elem(&locals, &p.dst.addr);
	if (!l)
		return source ? count(ELSEWHERE) : SLOW;
	if (l->slow)
		return count(CONTAINER);
	const struct peer *from = bpf_map_lookup_elem(&peers, &p.src);
	if (from && from->flags & BY_KERNEL)
		return count(ELSEWHERE);
	if (!from || !(from->flags & TUNNEL) == !!source || (source && !same_addr(source, &from->source)))
		return count(SOURCE);
	why = judge(skb, c, &p, v6);
	if (why)
		return count(why);
	if (bpf_check_mtu(skb, l->link, &mtu, -room, 0))
		return count(GONE);

	if (room && bpf_skb_adjust_room(skb, -room, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		return count(REFUSED);
	if (room)
		bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC); // the outer one is gone
	if (!hop(skb, ETH_HLEN, v6))
		return TC_ACT_SHOT;
	if (v6)
		bpf_csum_update(skb, (__u32)~bpf_htons(1)); // by the hop limit; where the card has summed it up
	struct ethhdr *eth = at(skb, 0, sizeof(*eth));
	if (!eth)
		return TC_ACT_SHOT;
	__builtin_memcpy(eth->h_dest, l->mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, l->gateway, ETH_ALEN);
	skb->mark = skb->priority = 0;
	count_peer(from, 1);
	return bpf_redirect_peer(l->link, 0);
}

// tunnelled says whether a packet is one for our tunnel, and why it is not fast, as far as the outer headers tell.
ALWAYS int tunnelled(struct __sk_buff *skb, const struct tunnel *t, const int v6, struct addr *source, int *why)
{
	const __u32 l4 = ETH_HLEN + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	struct udphdr *udp;
	__u16 length;
	__u8 ecn;

	void *outer = at(skb, ETH_HLEN, l4 - ETH_HLEN + sizeof(*udp));

	if (!t->port || !outer)
		return 0;
	if (v6) {
		struct ipv6hdr *ip = outer;
		if (ip->version != 6 || ip->nexthdr != IPPROTO_UDP || !same_addr((void *)&ip->daddr, &t->addr))
			return 0;
		ecn = ip->flow_lbl[0] >> 4 & 3;
		length = bpf_ntohs(ip->payload_len);
		__builtin_memcpy(source, &ip->saddr, 16);
	} else {
		struct iphdr *ip = outer;
		if (*(__u8 *)ip != 0x45 || ip->protocol != IPPROTO_UDP || ip->daddr != t->addr.w[3] || ip->frag_off & bpf_htons(0x3fff))
			return 0;
		ecn = ip->tos & 3;
		length = bpf_ntohs(ip->tot_len) - sizeof(*ip);
		mapped(source, ip->saddr);
	}
	udp = outer + l4 - ETH_HLEN;
	if (udp->dest != t->port)
		return 0;
	if (!at(skb, l4, sizeof(*udp) + sizeof(struct vxlanhdr) + ETH_HLEN + 2))
		bpf_skb_pull_data(skb, ETH_HLEN + ROOM(v6) + 2);
	udp = at(skb, l4, sizeof(*udp) + sizeof(struct vxlanhdr) + ETH_HLEN + 2);
	if (!udp)
		return 0;
	struct vxlanhdr *vxlan = (void *)(udp + 1);
	struct ethhdr *inner = (void *)(vxlan + 1);
	__u8 inner_ecn = ((__u8 *)(inner + 1))[1] >> (v6 ? 4 : 0) & 3;
	if (vxlan->flags != bpf_htonl(0x08000000) || vxlan->vni != t->vni || !same_mac(inner->h_dest, t->mac) ||
	    inner->h_proto != (v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP)) ||
	    bpf_ntohs(udp->len) != length || length != (__u16)(skb->len - l4))
		*why = ELSEWHERE;
	else if (ecn == 3 || (ecn == 1 && inner_ecn == 2))
		*why = CONGESTED;
	return 1;
}

// take is from_wire for a family.
ALWAYS int take(struct __sk_buff *skb, const struct own *c, const int v6)
{
	struct addr source;
	int why = NONE;

	if (tunnelled(skb, &c->tunnels[v6], v6, &source, &why))
		return why ? count(why) : receive(skb, c, ETH_HLEN + ROOM(v6), v6, &source);
	return c->direct ? receive(skb, c, ETH_HLEN, v6, NULL) : SLOW;
}

SEC("tc")
int from_container(struct __sk_buff *skb)
{
	const struct own *c = get_own();

	if (!c || skb->vlan_present)
		return SLOW;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return send(skb, c, 0);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return send(skb, c, 1);
	return SLOW;
}

SEC("tc")
int from_wire(struct __sk_buff *skb)
{
	const struct own *c = get_own();

	if (!c || skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return SLOW;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return take(skb, c, 0);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return take(skb, c, 1);
	return SLOW;
}

char _license[] SEC("license") = "Dual BSD/GPL";
