package fastpath

import "github.com/cilium/ebpf"

// Programs are the ids of the programs, by which they are known on links.
func (p *Path) Programs() (ids []uint32) {
	for _, program := range []*ebpf.Program{p.kernel.FromContainer, p.kernel.FromWire} {
		if info, err := program.Info(); err == nil {
			if id, ok := info.ID(); ok {
				ids = append(ids, uint32(id))
			}
		}
	}
	return ids
}
