package overlay

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// A message travels between two overlay processes, inside a plane, on port Port. The plane has authenticated
// where it comes from; what it says of third parties is a hint, and records carry their own signature.
//
//	0        4      5      6       8      16      24       40     42      44        76
//	| "plO1" | kind | zero | size  | id   | epoch | addr   | port | zero  | key     | body or padding
type message struct {
	kind  kind
	id    uint64         // chosen by who asks, repeated by who answers
	size  uint16         // answer: IP packet size of the probe as it arrived
	epoch uint64         // answer: the newest record of the asker that the answerer holds
	at    netip.AddrPort // answer, there: an address on the underlay; where: an address on either plane
	key   [32]byte       // switched, moved: the WireGuard key in use from now on; there: the address asked for
	body  []byte         // record: an envelope
}

type kind uint8

const (
	probe    kind = iota + 1 // are you there; padded to find the path's MTU
	answer                   // yes, and this is where I see you
	record                   // a record that is newer than what you may have
	switched                 // I use another WireGuard key now
	moved                    // so do I with you
	where                    // at which place of the underlay do you see this address
	there                    // at this one
	kinds
)

const (
	magic       = "plO1"
	headerBytes = 76
	// maxMessage is a whole packet of the widest device.
	maxMessage = 9000
)

var errMessage = errors.New("not a message of the overlay")

// appendTo writes m after b, padded with zeros to at least length bytes in all.
func (m *message) appendTo(b []byte, length int) []byte {
	start := len(b)
	b = append(b, magic...)
	b = append(b, byte(m.kind), 0)
	b = binary.BigEndian.AppendUint16(b, m.size)
	b = binary.BigEndian.AppendUint64(b, m.id)
	b = binary.BigEndian.AppendUint64(b, m.epoch)
	var addr [16]byte
	if m.at.Addr().IsValid() {
		addr = m.at.Addr().As16()
	}
	b = append(b, addr[:]...)
	b = binary.BigEndian.AppendUint16(b, m.at.Port())
	b = append(b, 0, 0)
	b = append(b, m.key[:]...)
	b = append(b, m.body...)
	if missing := length - (len(b) - start); missing > 0 {
		b = append(b, make([]byte, missing)...)
	}
	return b
}

// parseMessage reads a message; body is borrowed from b.
func parseMessage(b []byte) (m message, err error) {
	if len(b) < headerBytes || string(b[:4]) != magic || b[4] == 0 || kind(b[4]) >= kinds {
		return m, errMessage
	}
	m.kind = kind(b[4])
	m.size = binary.BigEndian.Uint16(b[6:])
	m.id = binary.BigEndian.Uint64(b[8:])
	m.epoch = binary.BigEndian.Uint64(b[16:])
	if a := netip.AddrFrom16([16]byte(b[24:40])).Unmap(); !a.IsUnspecified() || a.Is4() {
		m.at = netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[40:]))
	}
	m.key = [32]byte(b[44:76])
	if m.kind == record {
		m.body = b[headerBytes:]
	}
	return m, nil
}
