package policy

// The numbers are those of the cases that POLICY-CASES.md lists.

const both = "policyTypes: [Ingress, Egress]"

// seedCases are section A.
var seedCases = []polCase{
	quickly(one(1, "the seeds' deny-all-ingress, allowed again, myapp alone, deny-all-egress, allowed again",
		file("dev", "1-deny-all-ingress.yaml"), file("dev", "2-allow-all-ingress.yaml"), file("dev", "3-allow-netpol-demo.yaml"),
		file("prod", "4-deny-all-egress.yaml"), file("prod", "5-allow-all-egress.yaml"))),
	one(6, "the same with CRLF, tabs in comments, --- first, several documents", puts("---\r\n# \tein Tab\r\n"+
		"apiVersion: networking.k8s.io/v1\r\nkind: NetworkPolicy\r\nmetadata: {name: crlf, namespace: dev}\r\nspec: {podSelector: {}}\r\n"+
		"---\r\napiVersion: networking.k8s.io/v1\r\nkind: NetworkPolicy\r\nmetadata: {name: crlf, namespace: prod}\r\nspec: {podSelector: {matchLabels: {app: db}}}\r\n")),
	one(6, "kind: List", puts(`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy",
"metadata":{"name":"in-list","namespace":"dev"},"spec":{"podSelector":{"matchLabels":{"app":"db"}}}}]}`)),
	one(7, "-n fills in the namespace", func(r *rig) {
		r.apply("prod", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: filled}\nspec: {podSelector: {}}\n")
	}),
}

// isolationCases are section B.
var isolationCases = []polCase{
	one(9, "only who is selected is isolated", put("dev", "p", "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}")),
	one(11, "no types, no rules", put("dev", "p", "{podSelector: {}}")),
	one(12, "no types, rules of egress", put("dev", "p", "{podSelector: {}, egress: [{ports: [{port: 80}]}]}")),
	one(13, "no types, egress empty", put("dev", "p", "{podSelector: {}, egress: []}")),
	one(14, "rules of the type that is not named are void", put("dev", "p", "{podSelector: {}, policyTypes: [Egress], ingress: [{}]}"),
		put("dev", "p", "{podSelector: {}, policyTypes: [Ingress], egress: [{}]}")),
	one(15, "empty, null, absent", put("dev", "p", "{podSelector: {}, ingress: []}"), put("dev", "p", "{podSelector: {}, ingress: null}")),
	quickly(one(16, "deny both ways, then with an exception", put("dev", "p", "{podSelector: {}, "+both+"}"),
		put("dev", "p", "{podSelector: {}, "+both+", egress: [{ports: [{protocol: UDP, port: 81}]}]}"))),
}

// peerCases are section C.
var peerCases = []polCase{
	one(20, "from empty", put("dev", "p", "{podSelector: {}, ingress: [{from: [], ports: [{port: 80}]}]}")),
	one(21, "podSelector {} is the policy's namespace", put("dev", "p", "{podSelector: {}, "+both+", ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{podSelector: {}}]}]}")),
	one(22, "podSelector by label", put("dev", "p", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}")),
	one(23, "namespaceSelector {}", put("dev", "p", "{podSelector: {}, "+both+", ingress: [{from: [{namespaceSelector: {}}]}], egress: [{to: [{namespaceSelector: {}}]}]}")),
	one(24, "namespaceSelector by label", put("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {stage: prod}}}]}]}")),
	one(25, "namespaceSelector by name", put("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}]}]}")),
	quickly(one(26, "both in one peer, and in two", put("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {stage: prod}}, podSelector: {matchLabels: {app: db}}}]}]}"),
		put("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {stage: prod}}}, {podSelector: {matchLabels: {app: db}}}]}]}"))),
	one(28, "empty namespaceSelector, podSelector by label", put("dev", "p", "{podSelector: {}, egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}]}], policyTypes: [Egress]}")),
	one(29, "In, NotIn, Exists, DoesNotExist, labels and expressions",
		put("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: In, values: [db, job]}]}}]}]}"),
		put("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db, job]}]}}]}]}"),
		put("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: Exists}]}}]}]}"),
		put("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]}]}"),
		put("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: myapp}, matchExpressions: [{key: env, operator: Exists}]}}]}]}")),
	one(30, "targets by expressions", put("dev", "p", "{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}}")),
	one(31, "two rules, whose ports do not leak", put("dev", "p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {matchLabels: {stage: prod}}}], ports: [{protocol: UDP, port: 81}]}]}")),
	one(32, "podSelector null with a namespaceSelector", put("dev", "p", "{podSelector: {}, ingress: [{from: [{podSelector: null, namespaceSelector: {matchLabels: {stage: prod}}}]}]}")),
	one(33, "labels with a prefix, empty ones, long ones",
		put("dev", "p", "{podSelector: {matchLabels: {example.com/tier: back}}, ingress: [{from: [{podSelector: {matchLabels: {example.com/tier: front}}}]}]}"),
		put("dev", "p", "{podSelector: {matchLabels: {empty: ''}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {long: "+
			"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx}}}]}]}")),
	one(34, "a namespace that nobody has described, and one without containers", put("other", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: nobody}}}, {podSelector: {}}]}]}")),
	one(35, "who has no labels", put("dev", "p", "{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]}]}")),
}

// portCases are section D.
var portCases = []polCase{
	one(36, "ports, peers and ports", put("dev", "p", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"), put("dev", "p", "{podSelector: {}, ingress: [{ports: [{port: 80}, {protocol: UDP, port: 81}]}]}"),
		put("dev", "p", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], ports: [{protocol: TCP, port: 81}]}]}")),
	one(38, "a protocol without port", put("dev", "p", "{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}"),
		put("dev", "p", "{podSelector: {}, egress: [{to: [{podSelector: {}}], ports: [{protocol: TCP}]}], policyTypes: [Egress]}")),
	one(39, "no ports are all", put("dev", "p", "{podSelector: {}, ingress: [{ports: [], from: [{podSelector: {}}]}]}")),
	quickly(one(40, "ranges: of selectors, of everyone, that overlap and touch",
		put("dev", "p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 79, endPort: 80}]}]}"),
		put("dev", "p", "{podSelector: {}, ingress: [{ports: [{port: 81, endPort: 90}]}]}"),
		puts(netpolText("dev", "p", "{podSelector: {}, ingress: [{ports: [{port: 10, endPort: 80}]}]}"), netpolText("dev", "q", "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 90}]}]}"),
			netpolText("dev", "r", "{podSelector: {}, ingress: [{ports: [{port: 91, endPort: 100}, {protocol: UDP, port: 81, endPort: 81}]}]}")))),
	one(41, "1-65535, and one inside another's range", puts(netpolText("dev", "p", "{podSelector: {}, ingress: [{ports: [{port: 1, endPort: 65535}]}]}"), netpolText("dev", "q", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}")),
		drop("dev/p")),
	one(42, "names: of the selected, of the wrong protocol, that nobody has", put("dev", "p", "{podSelector: {}, ingress: [{ports: [{port: web}]}]}"),
		put("dev", "p", "{podSelector: {}, ingress: [{ports: [{protocol: UDP, port: web}]}]}"), put("dev", "p", "{podSelector: {}, ingress: [{ports: [{port: none}]}]}")),
	one(43, "a name that two of one policy have with other numbers", put("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: web}]}]}")),
	one(44, "a name in egress is the peer's", put("dev", "p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: web}]}]}"),
		put("dev", "p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.5.0.0/16}}], ports: [{port: web}]}]}"),
		put("dev", "p", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}")),
	one(45, "SCTP isolates and opens no TCP", put("dev", "p", "{podSelector: {}, ingress: [{ports: [{protocol: SCTP, port: 80}]}]}")),
}

// blockCases are section E.
var blockCases = []polCase{
	quickly(one(49, "one address of each family", block("prod/pod1", v4, 32, "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '%s'}}]}]}"),
		block("prod/pod1", v6, 128, "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '%s'}}]}]}"))),
	one(49, "0.0.0.0/0 is not IPv6, ::/0 is not IPv4", put("dev", "p", "{podSelector: {}, "+both+", ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"),
		put("dev", "p", "{podSelector: {}, "+both+", ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}], egress: [{to: [{ipBlock: {cidr: '::/0'}}]}]}")),
	one(50, "except; allowed by another peer; by another policy", blocks("prod/pod1", "dev/db", v4, "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.5.0.0/16, except: ['%a', '%b']}}]}]}"),
		blocks("prod/pod1", "dev/db", v4, "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.5.0.0/16, except: ['%a', '%b']}}, {ipBlock: {cidr: '%a'}}]}]}"),
		blocks("prod/pod1", "dev/db", v4, "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.5.0.0/16, except: ['%a']}}]}]}", "{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}")),
	one(51, "overlapping blocks with overlapping ranges", blocks("prod/pod1", "other/job", v4, "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.5.0.0/16}}], ports: [{port: 1, endPort: 80}]}, {from: [{ipBlock: {cidr: '%a'}}], ports: [{port: 80, endPort: 100}]}]}",
		"{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {stage: prod}}}], ports: [{protocol: UDP, port: 81}]}]}")),
	one(52, "the block of who is outside", put("dev", "p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 172.30.1.50/32}}], ports: [{port: 80}]}]}")),
	one(53, "egress to outside, by the address before translation", put("dev", "p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 172.30.1.0/24}}, {ipBlock: {cidr: 'fd00:30:1::/64', except: ['fd00:30:1::32/128']}}]}]}")),
	one(54, "host bits set", put("dev", "p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.5.0.1/16}}]}]}")),
}

// severalCases are section F.
var severalCases = []polCase{
	quickly(one(55, "deny and allow all, both ways", puts(netpolText("dev", "deny", "{podSelector: {}, "+both+"}"), netpolText("dev", "allow", "{podSelector: {}, "+both+", ingress: [{}], egress: [{}]}")),
		drop("dev/allow"))),
	one(56, "stacked, overlapping selectors, other ports", puts(netpolText("dev", "p", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}"),
		netpolText("dev", "q", "{podSelector: {matchExpressions: [{key: app, operator: Exists}]}, ingress: [{from: [{namespaceSelector: {matchLabels: {stage: prod}}}], ports: [{port: 81}]}]}"))),
	one(57, "one side denies", puts(netpolText("dev", "p", "{podSelector: {}, policyTypes: [Egress]}"), netpolText("prod", "q", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}")),
		put("dev", "p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}"), put("prod", "q", "{podSelector: {}}")),
	one(59, "ingress and egress with ports in one policy", put("dev", "p", "{podSelector: {}, "+both+", ingress: [{ports: [{port: 80}]}], egress: [{ports: [{protocol: UDP, port: 81}]}]}")),
	one(60, "one name in two namespaces", puts(netpolText("dev", "same", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"), netpolText("prod", "same", "{podSelector: {}, ingress: [{ports: [{port: 81}]}]}")),
		drop("dev/same")),
	one(60, "1,000 policies on one container", func(r *rig) { r.apply("dev", thousand()) }),
	one(61, "in each order", permuted()...),
}

// changeCases are section G.
var changeCases = []polCase{
	quickly(one(62, "allowed, denied, allowed, deleted", put("dev", "p", "{podSelector: {}, ingress: [{}]}"), put("dev", "p", "{podSelector: {}}"), put("dev", "p", "{podSelector: {}, ingress: [{}]}"), drop("dev/p"))),
	one(63, "a peer's label, the target's label", put("dev", "p", "{podSelector: {matchLabels: {app: myapp}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {new: 'yes'}}}]}]}"),
		label("prod/pod1", map[string]string{"app": "myapp", "env": "prod", "new": "yes"}), label("other/job", map[string]string{"app": "job"}),
		label("dev/plain", map[string]string{"app": "myapp"}), label("dev/pod1", map[string]string{"app": "else"})),
	one(64, "a namespace's label", put("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}]}"),
		nsLabel("prod", map[string]string{"stage": "prod", "team": "blue"}), nsLabel("other", map[string]string{"team": "blue"}), nsLabel("prod", map[string]string{"stage": "prod"})),
}
