package ice

import (
	"encoding/binary"
	"net/netip"

	"github.com/pion/stun/v3"
)

// AliveBytes is the length of the longest answer that AppendAlive makes.
const AliveBytes = 20 + 8 + 16

// magic is the cookie in every STUN message (RFC 8489 §5).
const magic = 0x2112a442

// AppendAlive appends the answer to a STUN request that names nobody, from remote, to dst: a shard asks in this way whether
// media is alive here. It is never longer than what it answers, so that nobody can be flooded by way of it; ok is
// false for anything else.
func AppendAlive(dst, b []byte, remote netip.AddrPort) (answer []byte, ok bool) {
	ip := remote.Addr().Unmap()
	n := 8 + ip.BitLen()/8 // of the one attribute with its own header of 4
	if !isAnonymous(b) || len(b) < 20+n+4 || !ip.IsValid() {
		return dst, false
	}
	family := byte(1)
	if ip.Is6() {
		family = 2
	}
	dst = binary.BigEndian.AppendUint16(dst, bindingSuccess)
	dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	dst = append(dst, b[4:20]...)
	dst = binary.BigEndian.AppendUint16(dst, uint16(stun.AttrXORMappedAddress))
	dst = binary.BigEndian.AppendUint16(dst, uint16(n-4))
	dst = append(dst, 0, family)
	dst = binary.BigEndian.AppendUint16(dst, remote.Port()^(magic>>16))
	for i, x := range ip.AsSlice() {
		dst = append(dst, x^b[4+i]) // the cookie, then the transaction
	}
	return dst, true
}

// isAnonymous reports whether b is a binding request without a user name.
func isAnonymous(b []byte) bool {
	if len(b) < 20 || len(b) != 20+int(binary.BigEndian.Uint16(b[2:])) || !stun.IsMessage(b) || binary.BigEndian.Uint16(b) != bindingRequest {
		return false
	}
	for at := 20; at+4 <= len(b); {
		if stun.AttrType(binary.BigEndian.Uint16(b[at:])) == stun.AttrUsername {
			return false
		}
		at += 4 + (int(binary.BigEndian.Uint16(b[at+2:]))+3)&^3
	}
	return true
}
