package compile_test

import "github.com/overlayd/overlayd/policy"

var cases = []struct {
	name     string
	def      policy.Default
	policies string
	yes, no  string
}{
	{name: "A1 deny-all-ingress", policies: `a/p: {podSelector: {}, policyTypes: [Ingress]}`,
		yes: "a/web>out tcp/80; a/web>b/web icmp; out>c/web tcp/80", no: "out>a/web tcp/80; a/db>a/web tcp/80; b/web>a/web icmp v6"},
	{name: "A2 ingress of everything", policies: `a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{}]}`,
		yes: "out>a/web tcp/80; out>a/web gre; b/web>a/db icmp v6"},
	{name: "A3 block with except", policies: `
a/p: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.16/31]}}], ports: [{protocol: TCP, port: 80}]}]}`,
		yes: "a/web>a/db tcp/80; b/db>a/db tcp/80; a/db>a/web tcp/81", no: "b/web>a/db tcp/80; a/web>a/db tcp/81; a/web>a/db tcp/80 v6; out>a/db tcp/80"},
	{name: "A4 deny-all-egress", policies: `a/p: {podSelector: {}, policyTypes: [Egress]}`,
		yes: "out>a/web tcp/80; b/web>a/web tcp/80", no: "a/web>out tcp/80; a/web>a/db tcp/80; a/web>a/db icmp"},
	{name: "A5 egress of everything", policies: `a/p: {podSelector: {}, policyTypes: [Egress], egress: [{}]}`, yes: "a/web>out gre; a/web>a/db tcp/1"},
	{name: "B8 no policy", yes: "out>a/web tcp/80; a/web>out gre"},
	{name: "B9 B10 others are not isolated", policies: `a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}`,
		yes: "out>a/db tcp/80; out>c/web tcp/80; a/web>a/db tcp/1", no: "out>a/web tcp/80; out>a/web2 tcp/80"},
	{name: "B14 rules of the other direction are void", policies: `
a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], ingress: [{from: [{podSelector: {}}]}]}
a/q: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], egress: [{to: [{podSelector: {}}]}]}`,
		yes: "out>a/web tcp/80; a/db>out tcp/80", no: "a/web>a/bare tcp/80; out>a/db tcp/80"},
	{name: "B16 but DNS", policies: `a/p: {podSelector: {}, policyTypes: [Ingress, Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]}`,
		yes: "a/web>out udp/53; a/web>b/web udp/53 v6", no: "a/web>out tcp/53; a/web>a/db udp/53; out>a/web udp/53"},
	{name: "B17 itself", policies: `a/p: {podSelector: {}, policyTypes: [Ingress, Egress]}`, yes: "a/web>a/web tcp/80; a/web>a/web icmp v6"},
	{name: "C21 C22 peers of the own namespace", policies: `
a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}
a/q: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}`,
		yes: "a/db>a/web tcp/80; a/bare>a/web icmp; a/web2>a/db tcp/1", no: "b/web>a/web tcp/80; out>a/web tcp/80; b/web>a/db tcp/1; a/bare>a/db tcp/1"},
	{name: "C23 C32 all namespaces", policies: `a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]}`,
		yes: "b/db>a/web tcp/80; c/web>a/web icmp v6; a/bare>a/web gre", no: "out>a/web tcp/80"},
	{name: "C24 namespaces by label", policies: `
a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}}}]}]}`,
		yes: "b/db>a/web tcp/80", no: "c/web>a/web tcp/80; a/db>a/web tcp/80"},
	{name: "C25 C34 namespaces by name", policies: `
a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: c}}}]}]}
a/q: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [b, none]}]}}]}]}`,
		yes: "c/web>a/web tcp/80; b/web>a/db tcp/80", no: "b/web>a/web tcp/80; c/web>a/db tcp/80"},
	{name: "C26 both in one peer", policies: `
a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}}, podSelector: {matchLabels: {app: web}}}]}]}`,
		yes: "b/web>a/db tcp/1", no: "b/db>a/db tcp/1; a/web>a/db tcp/1"},
	{name: "C27 in two", policies: `
a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}}}, {podSelector: {matchLabels: {app: web}}}]}]}`,
		yes: "b/db>a/db tcp/1; a/web>a/db tcp/1", no: "a/bare>a/db tcp/1; c/web>a/db tcp/1"},
	{name: "C28 by label in all namespaces", policies: `
a/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]}]}`,
		yes: "a/db>b/web tcp/1; a/db>c/web tcp/1; a/db>a/web tcp/1", no: "a/web>b/db tcp/1; a/web>out tcp/1"},
	{name: "C29 C33 C35 operators", policies: `
a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}}]}]}
a/q: {podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {example.com/tier: ""}, matchExpressions: [{key: app, operator: Exists}]}}]}]}`,
		yes: "a/bare>a/web tcp/1; a/web2>a/web tcp/1; a/db>a/bare tcp/1", no: "a/db>a/web tcp/1; a/web>a/bare tcp/1; b/web>a/web tcp/1"},
	{name: "C31 ports do not leak to other rules", policies: `
a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{protocol: TCP, port: 80}]}, {from: [{podSelector: {matchLabels: {app: db}}}], ports: [{protocol: TCP, port: 81}]}]}`,
		yes: "a/web>a/bare tcp/80; a/db>a/bare tcp/81", no: "a/web>a/bare tcp/81; a/db>a/bare tcp/80"},
	{name: "D36 D38 D39 D48 ports", policies: `
a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{ports: [{protocol: TCP, port: 80}, {protocol: UDP}]}]}
a/q: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}], ports: []}]}`,
		yes: "out>a/web tcp/80; out>a/web udp/1; out>a/web udp/65535 v6; a/web>a/db icmp; a/web>a/db gre",
		no:  "out>a/web tcp/81; out>a/web icmp; out>a/web gre; out>a/web sctp/80; out>a/db tcp/80"},
	{name: "D40 D41 ranges of several policies", policies: `
a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{protocol: TCP, port: 80, endPort: 85}]}]}
a/q: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}], ports: [{protocol: TCP, port: 83, endPort: 90}, {protocol: TCP, port: 91, endPort: 91}, {protocol: UDP, port: 1, endPort: 65535}]}]}
a/r: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{protocol: TCP, port: 88}]}]}`,
		yes: "out>a/web tcp/80; out>a/web tcp/85; out>a/web tcp/88; a/db>a/web tcp/90; a/db>a/web tcp/91; a/db>a/web udp/65535",
		no:  "out>a/web tcp/86; a/db>a/web tcp/92; a/db>a/web tcp/79; out>a/web udp/80"},
	{name: "D42 D43 a name is of the selected container's port", policies: `
a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{protocol: TCP, name: web}, {protocol: UDP, name: sql}, {protocol: TCP, name: nobody}]}]}`,
		yes: "out>a/web tcp/80; out>a/web2 tcp/81", no: "out>a/web tcp/81; out>a/web2 tcp/80; out>a/db udp/5432; out>a/db tcp/80; out>a/bare tcp/80"},
	{name: "D44 of egress it is the peer's", policies: `
a/p: {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{ports: [{protocol: TCP, name: web}, {protocol: TCP, name: dns}]}]}
a/q: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.16/28}}], ports: [{protocol: TCP, name: web}]}]}`,
		yes: "a/db>a/web tcp/80; a/db>a/web2 tcp/81; a/db>b/web tcp/8080 v6; a/web>b/web tcp/8080",
		no:  "a/db>a/web tcp/81; a/db>b/web udp/53; a/db>b/web tcp/53; a/db>out tcp/80; a/web>a/web2 tcp/81; a/web>b/web tcp/8080 v6; a/web>b/db tcp/8080"},
	{name: "D45 SCTP", policies: `a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{protocol: SCTP, port: 80}]}]}`,
		yes: "out>a/web sctp/80", no: "out>a/web tcp/80; out>a/web udp/80; out>a/web sctp/81"},
	{name: "E49 families", policies: `
a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}
a/q: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: "::/0"}}]}]}`,
		yes: "out>a/web tcp/80; out>a/db tcp/80 v6", no: "out>a/web tcp/80 v6; out>a/db tcp/80"},
	{name: "E50 excepted here, allowed there", policies: `
a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/27]}}, {podSelector: {matchLabels: {app: db}}}]}]}
a/q: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.0.0.16/31}}]}]}`,
		yes: "a/db>a/web tcp/80; b/web>a/web tcp/80; c/web>a/web tcp/80; 10.255.0.1>a/web icmp", no: "a/bare>a/web tcp/80; b/db>a/web tcp/80"},
	{name: "E51 blocks and ranges that overlap, and selectors", policies: `
a/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{protocol: TCP, port: 80, endPort: 85}]}, {from: [{ipBlock: {cidr: 10.0.0.16/28}}], ports: [{protocol: TCP, port: 84, endPort: 90}]}]}
a/q: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/26}}, {ipBlock: {cidr: 10.0.0.17/32}}, {podSelector: {}}], ports: [{protocol: TCP, port: 80, endPort: 85}, {protocol: TCP, port: 443}]}]}`,
		yes: "a/db>a/web tcp/85; b/web>a/web tcp/90; 10.0.0.200>a/web tcp/80; a/db>a/web tcp/443 v6; b/web>a/web tcp/443",
		no:  "a/db>a/web tcp/86; 10.0.0.200>a/web tcp/443; b/web>a/web tcp/443 v6"},
	{name: "F55 deny and allow", policies: `
a/p: {podSelector: {}, policyTypes: [Ingress, Egress]}
a/q: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}`, yes: "out>a/web icmp; a/web>out gre; a/web>a/db tcp/1"},
	{name: "F57 F58 both sides count", policies: `
a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}
a/q: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}], ports: [{protocol: TCP, port: 80}]}]}`,
		yes: "a/web>a/db tcp/80; out>a/web tcp/80; a/db>out tcp/80", no: "a/web>a/db tcp/81; a/web>a/bare tcp/80; out>a/db tcp/80"},
	{name: "F60 one name in two namespaces", policies: `
a/p: {podSelector: {}, policyTypes: [Ingress]}
c/p: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 192.0.2.0/24}}]}]}`,
		yes: "out>c/web tcp/80", no: "out>a/web tcp/80; a/web>c/web tcp/80"},
	{name: "default deny", def: policy.Deny, policies: `a/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}`,
		yes: "c/web>c/web icmp", no: "a/db>a/web tcp/80; out>c/web tcp/80; a/web>out tcp/80; c/web>out icmp v6"},
}
