package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// header begins every file. Its digit is the version of the format.
const header = "nixfleet journal 1\n"

// MaxRecord is how long a payload may be, in bytes.
const MaxRecord = 32 << 20

// MaxFile is how long a journal may grow, in bytes. Whoever appends compacts it long before.
const MaxFile = 256 << 20

// mark begins every record. It is no UTF-8, so no record of JSON contains it.
var mark = []byte{0xf6, 'N', 'F', 0xff}

const frame = 12 // mark, length, sum

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendRecord appends the payload's record to b.
func appendRecord(b, payload []byte) []byte {
	length := binary.LittleEndian.AppendUint32(nil, uint32(len(payload)))
	b = append(b, mark...)
	b = append(b, length...)
	b = binary.LittleEndian.AppendUint32(b, sum(length, payload))
	return append(b, payload...)
}

func sum(length, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(length, castagnoli), castagnoli, payload)
}

// parseRecord returns the payload of the record that data begins with, if it is whole and right.
func parseRecord(data []byte) ([]byte, bool) {
	if len(data) <= frame || !bytes.Equal(data[:4], mark) {
		return nil, false
	}
	length := binary.LittleEndian.Uint32(data[4:8])
	if length == 0 || length > MaxRecord || int(length) > len(data)-frame {
		return nil, false
	}
	payload := data[frame : frame+int(length) : frame+int(length)]
	return payload, binary.LittleEndian.Uint32(data[8:12]) == sum(data[4:8], payload)
}

// parse returns the payloads of a whole file. Where what follows the last good record is the beginning
// of one that was never finished, that is dropped. Anything else is damage: half a history is none.
//
// Nothing was ever written behind an unfinished record, and where the disk has only a part of it, the
// rest reads as zeros. So where there is more behind the end of the first bad record, or a good one can
// be found anywhere behind it, it is no torn end, whatever its length field says: it was acknowledged
// once. What cannot be told apart is a torn end and damage to nothing but the last record.
func parse(data []byte) ([][]byte, error) {
	rest, ok := bytes.CutPrefix(data, []byte(header))
	if !ok {
		return nil, fmt.Errorf("it does not begin with %q", header)
	}
	var records [][]byte
	for len(rest) > 0 {
		payload, ok := parseRecord(rest)
		if !ok {
			return records, torn(rest, len(data)-len(rest))
		}
		records = append(records, payload)
		rest = rest[frame+len(payload):]
	}
	return records, nil
}

// torn returns an error unless rest, which is at this byte of the file, can be an unfinished record.
func torn(rest []byte, at int) error {
	if len(rest) >= frame && bytes.Equal(rest[:4], mark) {
		length := int64(binary.LittleEndian.Uint32(rest[4:8]))
		if length < int64(len(rest)-frame) && len(bytes.Trim(rest[frame+length:], "\x00")) > 0 {
			return fmt.Errorf("the record at byte %d is damaged, and is not the last", at)
		}
	}
	for from := 1; ; from++ {
		next := bytes.Index(rest[from:], mark)
		if next < 0 {
			return nil
		}
		from += next
		if _, ok := parseRecord(rest[from:]); ok {
			return fmt.Errorf("the record at byte %d is damaged, and the one at byte %d is not", at, at+from)
		}
	}
}
