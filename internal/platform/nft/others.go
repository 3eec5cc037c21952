package nft

import (
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Dropping names the base chains of other tables that drop what they do not accept on its
// way through the host, like Docker's "ip filter FORWARD". What one table accepts another
// may still drop, so no rule of ours helps against them.
func (n *Conn) Dropping(except string) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var found []string
	for family, name := range map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
	} {
		chains, err := n.c.ListChainsOfTableFamily(family)
		if err != nil {
			return nil, failure("list nftables chains", err)
		}
		for _, ch := range chains {
			if ch.Hooknum == nil || *ch.Hooknum != unix.NF_INET_FORWARD || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop {
				continue
			}
			if family == nftables.TableFamilyINet && ch.Table.Name == except {
				continue
			}
			found = append(found, fmt.Sprintf("%s %s %s", name, ch.Table.Name, ch.Name))
		}
	}
	return found, nil
}
