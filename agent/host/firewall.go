package host

import (
	"strings"

	"github.com/google/nftables"
)

// closed names the chains of nftables that drop what arrives here and they do not name, as "family table chain": no
// accept in another table overrides that.
func closed() (all []string) {
	c, err := nftables.New()
	if err != nil {
		return nil
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil // who may not look is told by something else
	}
	families := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}
	for _, x := range chains {
		family, known := families[x.Table.Family]
		if known && x.Hooknum != nil && *x.Hooknum == *nftables.ChainHookInput && x.Policy != nil && *x.Policy == nftables.ChainPolicyDrop &&
			!strings.HasPrefix(x.Table.Name, "plenum") {
			all = append(all, family+" "+x.Table.Name+" "+x.Name)
		}
	}
	return all
}
