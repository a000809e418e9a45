"""A small VCF of two samples with many kinds of records, written as VCF, compressed VCF or BCF."""

from __future__ import annotations

from pathlib import Path

import pysam
import pysam.bcftools

HEADER = """\
##fileformat=VCFv4.3
##FILTER=<ID=PASS,Description="All filters passed">
##FILTER=<ID=q10,Description="Quality below 10">
##INFO=<ID=END,Number=1,Type=Integer,Description="End">
##INFO=<ID=SVLEN,Number=A,Type=Integer,Description="Length">
##INFO=<ID=CSQ,Number=.,Type=String,Description="Consequence">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="Depth of each allele">
##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">
##FORMAT=<ID=FT,Number=1,Type=String,Description="Filter">
##contig=<ID=chr1,length=248956422>
##contig=<ID=chrX,length=156040895>
"""
RECORDS = """\
chr1	100	rs1	A	C,<*>	50	PASS	CSQ=a,b	GT:AD:DP	0/1:5,6,0:300	1/1:0,7,0:7
chr1	150	.	ACG	A	.	q10	.	GT:DP	./.:.	0|1:2
chr1	200	.	A	<DEL>	9	.	END=300;SVLEN=-100	GT:FT	0/1:PASS	./.:low
chr1	400	.	T	G	9	.	.	DP	4	5
chrX	10	.	G	T	9	PASS	.	GT:DP	1:9	0/1:8
"""
OLD, NEW = ("A1", "A2"), ("B1", "B2")


def text(samples: tuple[str, ...] = NEW, records: str = RECORDS, header: str = HEADER) -> str:
    columns = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]
    return header + "\t".join(columns) + "\n" + records


def write(path: Path, content: str) -> Path:
    """Write VCF text in the format given by the file's suffix, without an index; return its path."""
    if path.suffix == ".bcf":
        plain = path.with_name(f"{path.name}.vcf")
        plain.write_text(content)
        pysam.bcftools.view("-Ob", "-o", str(path), str(plain), catch_stdout=False)
        plain.unlink()
    elif path.suffix == ".vcf":
        path.write_text(content)
    else:
        with pysam.BGZFile(str(path), "wb") as file:
            file.write(content.encode())
    return path
