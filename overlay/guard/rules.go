package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"os/user"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// A rule is one line of the table: where it hangs, what it says, and the comment by which it is known again.
type rule struct {
	chain   string
	comment string
	exprs   []expr.Any
}

// chains in the order of a packet's life. Leaving is looked at last, when nothing can reroute it any more.
var chains = []struct {
	name     string
	hook     *nftables.ChainHook
	priority int32
}{
	{"arriving", nftables.ChainHookPrerouting, -310},
	{"reaching", nftables.ChainHookInput, 0},
	{"leaving", nftables.ChainHookPostrouting, 310},
}

func rulesOf(planes []Plane) []rule {
	var all []rule
	for _, uid := range relays() {
		for _, p := range planes {
			all = append(all, rule{"leaving", fmt.Sprintf("plenum: user %d opens nothing in %s", uid, p.Prefix), slices.Concat(owner(uid), opens(), within(p.Prefix, true), drop())})
		}
		all = append(all, rule{"leaving", fmt.Sprintf("plenum: user %d opens nothing on this host", uid), slices.Concat(owner(uid), opens(), name(expr.MetaKeyOIFNAME, expr.CmpOpEq, "lo"), drop())})
	}
	for _, p := range planes {
		outside := func(key expr.MetaKey) []expr.Any {
			return slices.Concat(name(key, expr.CmpOpNeq, p.Device), name(key, expr.CmpOpNeq, "lo"))
		}
		mark := fmt.Sprintf("plenum: %s on %s only", p.Prefix, p.Device)
		all = append(all,
			rule{"arriving", mark + ", from", slices.Concat(outside(expr.MetaKeyIIFNAME), within(p.Prefix, false), drop())},
			rule{"arriving", mark + ", to", slices.Concat(outside(expr.MetaKeyIIFNAME), within(p.Prefix, true), drop())},
			rule{"leaving", mark, slices.Concat(outside(expr.MetaKeyOIFNAME), within(p.Prefix, true), drop())})
		if p.Filter {
			all = append(all, filter(p)...)
		}
	}
	return all
}

// relays are the users that relay for strangers and thus may open nothing in here, whatever they are told: they answer
// who comes. coturn's package makes its user.
func relays() []uint32 {
	u, err := user.Lookup("turnserver")
	if err != nil {
		return nil
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil
	}
	return []uint32{uint32(uid)}
}

// filter lets in answers, ICMP and what the plane accepts.
func filter(p Plane) []rule {
	in := name(expr.MetaKeyIIFNAME, expr.CmpOpEq, p.Device)
	mark := "plenum: " + p.Device + " accepts "
	all := []rule{{"reaching", mark + "answers", slices.Concat(in, established(), accept())}}
	for _, icmp := range []uint8{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		all = append(all, rule{"reaching", fmt.Sprintf("%sprotocol %d", mark, icmp), slices.Concat(in, proto(icmp), accept())})
	}
	for _, a := range p.Accept {
		match := in
		if a.Proto != 0 {
			match = slices.Concat(match, proto(a.Proto))
			if a.First != 0 || a.Last != 65535 {
				match = slices.Concat(match, ports(a.First, a.Last))
			}
		}
		what := fmt.Sprintf("%s%d:%d-%d", mark, a.Proto, a.First, a.Last)
		if a.From == nil {
			all = append(all, rule{"reaching", what, slices.Concat(match, accept())})
		}
		for _, from := range a.From {
			all = append(all, rule{"reaching", what + " from " + from.String(),
				slices.Concat(match, within(netip.PrefixFrom(from, from.BitLen()), false), accept())})
		}
	}
	return append(all, rule{"reaching", mark + "no more", slices.Concat(in, drop())})
}

// applyRules replaces the table in one transaction.
func applyRules(planes []Plane) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	made := map[string]*nftables.Chain{}
	policy := nftables.ChainPolicyAccept
	for _, ch := range chains {
		made[ch.name] = c.AddChain(&nftables.Chain{Name: ch.name, Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: ch.hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(ch.priority)), Policy: &policy})
	}
	for _, r := range rulesOf(planes) {
		c.AddRule(&nftables.Rule{Table: t, Chain: made[r.chain], Exprs: r.exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment)})
	}
	return c.Flush()
}

func removeRules() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	c.AddTable(t)
	c.DelTable(t)
	return c.Flush()
}

// intact reports whether the table holds our rules and no others, and every route is there.
func intact(planes []Plane) (bool, error) {
	have, err := ownRoutes()
	if err != nil {
		return false, err
	}
	for _, p := range planes {
		if !have[p.Prefix] {
			return false, nil
		}
	}
	comments, _, err := list()
	if err != nil {
		return false, err
	}
	var want []string
	for _, ch := range chains {
		for _, r := range rulesOf(planes) {
			if r.chain == ch.name {
				want = append(want, r.comment)
			}
		}
	}
	return slices.Equal(comments, want), nil
}

// Dropped counts the packets that the guard has kept from leaving or arriving the wrong way since it was applied.
func Dropped() (uint64, error) {
	_, n, err := list()
	return n, err
}

// list returns the comments of our rules, chain by chain, and the sum of their counters.
func list() (comments []string, dropped uint64, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, 0, err
	}
	t := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	for _, ch := range chains {
		rules, err := c.GetRules(t, &nftables.Chain{Name: ch.name, Table: t})
		if errors.Is(err, unix.ENOENT) {
			return nil, 0, nil
		}
		if err != nil {
			return nil, 0, err
		}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			comments = append(comments, comment)
			for _, e := range r.Exprs {
				if n, ok := e.(*expr.Counter); ok {
					dropped += n.Packets
				}
			}
		}
	}
	return comments, dropped, nil
}

// The expressions below are what nft --debug=netlink prints for the phrase in each comment.

// name: iifname != "x"
func name(key expr.MetaKey, op expr.CmpOp, device string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, device)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

// owner: meta skuid 105
func owner(uid uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(uid)}}
}

// opens: ct direction original
func opens() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}}}
}

// within: ip daddr 10.0.0.0/8, or ip6 saddr …
func within(p netip.Prefix, destination bool) []expr.Any {
	family, offset, size := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4)
	if p.Addr().Is6() {
		family, offset, size = unix.NFPROTO_IPV6, 8, 16
	}
	if destination {
		offset += size
	}
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// established: ct state established,related
func established() []expr.Any {
	states := expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(states), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// proto: meta l4proto udp
func proto(n uint8) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{n}}}
}

// ports: th dport 8300-8302
func ports(first, last uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: binaryutil.BigEndian.PutUint16(first), ToData: binaryutil.BigEndian.PutUint16(last)},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func drop() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
}
