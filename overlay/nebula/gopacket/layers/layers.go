// Package layers stands in for that of gopacket, of which nebula uses the five numbers below. The whole of it fills tables of
// seven megabytes in every process that starts, whether it ever runs an overlay or not; go.mod puts this one in its place.
package layers

// An IPProtocol is what the body of an IP packet is.
type IPProtocol uint8

// As assigned by IANA.
const (
	IPProtocolTCP    IPProtocol = 6
	IPProtocolUDP    IPProtocol = 17
	IPProtocolICMPv6 IPProtocol = 58
)

// Types of ICMPv6 messages (RFC 4443 §4).
const (
	ICMPv6TypeEchoRequest = 128
	ICMPv6TypeEchoReply   = 129
)
