package kernel

import "fmt"

// Commands are lines for a shell that install objects, in their order, where nothing of ours is yet. Beside the objects
// themselves they make the nft table and the chains of iptables that rules go to.
func Commands(objects []Object) []string {
	var lines []string
	made := map[string]bool{}
	before := func(place string, commands ...string) {
		if !made[place] {
			made[place], lines = true, append(lines, commands...)
		}
	}
	for _, o := range objects {
		switch o := o.(type) {
		case Masquerade:
			before("nft",
				fmt.Sprintf("nft add table inet %s", nftTable),
				fmt.Sprintf("nft 'add chain inet %s %s { type nat hook postrouting priority srcnat; }'", nftTable, nftChain))
		case Accept:
			command := o.command()
			before(command,
				fmt.Sprintf("%s -N %s", command, forwardChain),
				fmt.Sprintf("%s -I FORWARD 1 %s", command, forwardJump))
		}
		lines = append(lines, o.String())
	}
	return lines
}
