"""Sends what no honest neighbour sends, a bounded number of frames and datagrams, and ends.

    garbage.py frames DEVICE SEED COUNT IPV4 IPV6
    garbage.py datagrams ADDRESS PORT SEED COUNT

Frames are ARP and NDP for the addresses given, made well (RFC 826, RFC 4861 section 4.3) and then
spoilt: cut, lengthened, with octets changed, or random from the start.
"""

import ipaddress
import random
import socket
import struct
import sys

MAC = bytes.fromhex("020000000099")


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def arp(address):
    header = struct.pack("!HHBBH", 1, 0x0800, 6, 4, random.choice([1, 1, 2, 9]))
    sender = MAC + bytes([10, 0, 0, 99])
    packet = header + sender + bytes(6) + address.packed
    return b"\xff" * 6 + MAC + b"\x08\x06" + packet


def solicitation(address):
    source = ipaddress.ip_address("fd00:a::99").packed
    group = bytes.fromhex("ff0200000000000000000001ff") + address.packed[13:]
    option = random.choice([b"\x01\x01" + MAC, b"\x01\x00" + MAC, b"", b"\x01\xff" + MAC])
    message = struct.pack("!BBHI", 135, random.choice([0, 0, 7]), 0, 0) + address.packed + option
    pseudo = source + group + struct.pack("!II", len(message), 58)
    message = message[:2] + struct.pack("!H", checksum(pseudo + message)) + message[4:]
    hops = random.choice([255, 254, 1])
    header = struct.pack("!IHBB", 6 << 28, len(message), 58, hops)
    return b"\x33\x33" + group[12:] + MAC + b"\x86\xdd" + header + source + group + message


def spoilt(frame):
    way = random.randrange(4)
    if way == 0:
        return frame[: random.randrange(14, len(frame))]
    if way == 1:
        return frame + random.randbytes(random.randrange(1, 200))
    if way == 2:
        frame = bytearray(frame)
        for _ in range(random.randrange(1, 6)):
            frame[random.randrange(12, len(frame))] = random.randrange(256)
        return bytes(frame)
    return frame[:14] + random.randbytes(random.randrange(0, 200))


def frames(device, seed, count, v4, v6):
    random.seed(int(seed))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((device, 0))
        for _ in range(int(count)):
            make = random.choice([arp, solicitation])
            address = ipaddress.ip_address(v4 if make is arp else v6)
            wire.send(spoilt(make(address)))


def datagrams(address, port, seed, count):
    random.seed(int(seed))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(int(count)):
            start = random.choice([b"", b"BTH\x01", b"BTH\x01\x01" + bytes(7)])
            payload = start + random.randbytes(random.randrange(0, 1300))
            sender.sendto(payload, (address, int(port)))


{"frames": frames, "datagrams": datagrams}[sys.argv[1]](*sys.argv[2:])
