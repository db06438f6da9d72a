package api

// Names is how names of containers are answered on this host.
type Names struct {
	Listening []string    `json:"listening"` // addresses
	Endpoints int         `json:"endpoints"` // that are found by their names here, this host's and others'
	Followed  []string    `json:"followed"`  // namespaces whose containers on other hosts were asked for; *: all
	Contested []Contested `json:"contested"` // at most 100
	Error     string      `json:"error"`     // what is wrong, and still is
}

// Contested is a name that somebody claims besides who has it. Owners are services, or hosts.
type Contested struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Owner     string   `json:"owner"`
	Others    []string `json:"others"`
}
